"""Fetching weight files: a local path, `s3://`, `http(s)://` or `hf://repo/file`, checked by sha256 and cached.

`random` is no file: it asks for random values where weights ship with the package.

The cache is FSS_CACHE (default ~/.cache/fss). Nothing is unpickled here; readers use safetensors or weights-only loads.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import httpx

from fss_models import registry
from fss_models.errors import FssError
from fss_models.presets import RANDOM
from fss_models.segmenter import Segmenter
from fss_models.settings import weight_fields
from pipelines.cache import cache_dir
from pipelines.storage import Store


def build_model(method: str, preset: str, config: dict[str, Any], *, weights: str = "", sha256: str = "",
                seed: int = 0) -> Segmenter:
    """`registry.build` with every file fetched: `weights` and the configuration's fields that end in `_weights`."""
    fields = weight_fields(registry.method_config(method))
    local = {name: fetch(str(config[name])) for name in fields if config.get(name)}
    return registry.build(method, preset, config | local, weights=fetch(weights, sha256) or None, seed=seed)


def fetch(place: str, sha256: str = "") -> str:
    """A local path of the weight file at `place` ("" and "random" stay), which may end in `#sha256=...`.

    Raises `FssError` if it is missing or differs.
    """
    if place == RANDOM and sha256:
        raise FssError("random values have no sha256", where=place, mend="leave sha256 out, or name a file")
    if place in ("", RANDOM):
        return place
    place, _, given = place.partition("#sha256=")
    sha256 = sha256 or given
    path = _local(place)
    if sha256 and (found := file_sha256(path)) != sha256.lower():
        raise FssError(f"sha256 is {found}, the recipe says {sha256}", where=place, mend="fetch the right file")
    return str(path)


def file_sha256(path: str | Path) -> str:
    """The sha256 of a local file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pretraining_photos(place: str) -> list[str]:
    """The photos that training opened (sha256, first 16 digits) for a local weight file with its json beside it.

    That is what `fss pretrain` writes; [] for any other file. Raises `FssError` if the json is about another file.
    """
    path = Path(place.partition("#sha256=")[0]).expanduser()
    if "://" in place or path.suffix != ".safetensors" or not path.with_suffix(".json").is_file():
        return []
    beside = path.with_suffix(".json")
    about = json.loads(beside.read_text())
    if "data" not in about:
        return []
    if about.get("sha256") != file_sha256(path):
        raise FssError("is about another file", where=str(beside), mend=f"take it away, or fetch the right {path.name}")
    return sorted({p for one in about["data"] for p in one["photos"]})


def _local(place: str) -> Path:
    if "://" not in place:
        path = Path(place).expanduser()
        if not path.is_file():
            raise FssError("no such weight file", where=place)
        return path
    if place.startswith("hf://"):
        return _from_hub(place)
    kept = _kept(place)
    if not kept.is_file():
        _download(place, kept)
    return kept


def _kept(place: str) -> Path:
    """Where the cache keeps a file from the web or a bucket."""
    return cache_dir("weights", hashlib.sha256(place.encode()).hexdigest()[:16], place.rsplit("/", 1)[-1])


def is_here(place: str) -> bool:
    """Whether the weight file at `place` is on this machine already. Nothing is fetched."""
    place = place.partition("#sha256=")[0]
    if not place.startswith("hf://"):
        return (_kept(place) if "://" in place else Path(place).expanduser()).is_file()
    from huggingface_hub import try_to_load_from_cache

    owner, name, file = [*place.removeprefix("hf://").split("/", 2), "", ""][:3]
    return isinstance(try_to_load_from_cache(f"{owner}/{name}", file, cache_dir=cache_dir("weights", "hub")), str)


def _download(place: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        if place.startswith("s3://"):
            folder, _, name = place.rpartition("/")
            part.write_bytes(Store(folder).read_bytes(name))
        else:
            _from_web(place, part)
        part.replace(target)
    except (httpx.HTTPError, OSError) as error:
        raise FssError(f"cannot download: {error}", where=place, mend="fetch the file and give its path") from error
    finally:
        part.unlink(missing_ok=True)


def _from_hub(place: str) -> Path:
    """Through the hub's own client, which keeps its cache below ours; HF_ENDPOINT and HF_TOKEN are its variables."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    owner, name, file = [*place.removeprefix("hf://").split("/", 2), "", ""][:3]
    try:
        return Path(hf_hub_download(f"{owner}/{name}", file, cache_dir=cache_dir("weights", "hub"),
                                    endpoint=os.environ.get("HF_ENDPOINT")))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, httpx.HTTPError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FssError(f"the hub does not give it: {reason}", where=place,
                       mend="check hf://owner/repository/file, or fetch the file and give its path") from error


def _from_web(place: str, part: Path) -> None:
    with httpx.stream("GET", place, follow_redirects=True, timeout=60) as answer, part.open("wb") as out:
        answer.raise_for_status()
        for block in answer.iter_bytes(1 << 20):
            out.write(block)
