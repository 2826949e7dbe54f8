"""Fetching weight files: a local file or folder, `s3://`, `http(s)://` or `hf://owner/repository[@revision]/file`.

`hf://owner/repository` is the repository's model.safetensors. Gated repositories want HF_TOKEN.

Files are checked by sha256, and those from elsewhere are cached.

The word `random` in place of a file means random values, even where weights ship with the package.

The cache is FSS_CACHE (default ~/.cache/fss). Nothing is unpickled here; readers use safetensors or weights-only loads.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import httpx

from fss_models import registry
from fss_models.errors import FssError
from fss_models.presets import RANDOM
from fss_models.segmenter import Segmenter
from fss_models.settings import weight_fields
from fss_models.weight_files import file_sha256, weight_file
from pipelines.base.cache import cache_dir
from pipelines.base.storage import Store
from pipelines.bundles.hub import HubPlace, hub_file, hub_place, is_kept, on_hub
from pipelines.config.method import MethodConfig


def build_model(method: MethodConfig, *, seed: int = 0) -> Segmenter:
    """Build a method; its files are fetched first: `weights`, and the settings whose names end in `_weights`.

    Raises `FssError` as `fss_models.registry.build` and `fetch` do.
    """
    fields = weight_fields(registry.method_config(method.name))
    local = {name: fetch(str(method.config[name])) for name in fields if method.config.get(name)}
    weights = fetch(method.weights, method.sha256) or None
    return registry.build(method.name, method.preset, method.config | local, weights=weights, seed=seed)


def fetch(place: str, sha256: str = "") -> str:
    """Fetch the weight file at `place`, which may end in `#sha256=...`; returns its local path.

    "" and "random" are returned as they are. Raises `FssError` if the file is missing or its sha256 differs.
    """
    if place == RANDOM and sha256:
        raise FssError("random values have no sha256", where=place, hint="leave sha256 out, or give a file")
    if place in ("", RANDOM):
        return place
    place, _, suffix = place.partition("#sha256=")
    sha256 = sha256 or suffix
    path = _local(place)
    if sha256 and (found := file_sha256(path)) != sha256.lower():
        raise FssError(f"the sha256 of this file is {found}, not {sha256} as the recipe says", where=place,
                       hint="give the file with that sha256")
    return str(path)


def pretraining_photos(place: str) -> list[str]:
    """Photos (sha256, first 16 digits) that pretraining opened, read from the JSON file beside a local weight file.

    `fss pretrain` writes both files; [] for any other file. Raises `FssError` if the JSON is about another file.
    """
    path = Path(place.partition("#sha256=")[0]).expanduser()
    if "://" in place or path.suffix != ".safetensors" or not path.with_suffix(".json").is_file():
        return []
    beside = path.with_suffix(".json")
    about = json.loads(beside.read_text())
    if "data" not in about:
        return []
    if about.get("sha256") != file_sha256(path):
        raise FssError(f"this JSON file is about another file than {path.name} beside it", where=str(beside),
                       hint=f"remove it, or put the right {path.name} there")
    return sorted({p for one in about["data"] for p in one["photos"]})


def _local(place: str) -> Path:
    if "://" not in place:
        return weight_file(place)
    if on_hub(place):
        return hub_file(_weights_on_hub(place))
    cached = _cache_path(place)
    if not cached.is_file():
        _download(place, cached)
    return cached


def _cache_path(place: str) -> Path:
    """Path in the cache of a file from the web or a bucket."""
    return cache_dir("weights", hashlib.sha256(place.encode()).hexdigest()[:16], place.rsplit("/", 1)[-1])


def is_fetched(place: str) -> bool:
    """Whether the weight file at `place` is already on this machine. Nothing is fetched."""
    place = place.partition("#sha256=")[0]
    if on_hub(place):
        return is_kept(_weights_on_hub(place))
    return (_cache_path(place) if "://" in place else Path(place).expanduser()).exists()


def _weights_on_hub(place: str) -> HubPlace:
    """The file that `place` names, or the model.safetensors of the repository."""
    found = hub_place(place)
    return found if found.path else replace(found, path="model.safetensors")


def _download(place: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        if place.startswith("s3://"):
            part.write_bytes(Store(place).read_bytes())
        else:
            _from_web(place, part)
        part.replace(target)
    except (httpx.HTTPError, OSError) as error:
        raise FssError(f"cannot download this file: {error}", where=place,
                       hint="download it by hand and give its local path") from error
    finally:
        part.unlink(missing_ok=True)


def _from_web(place: str, part: Path) -> None:
    with httpx.stream("GET", place, follow_redirects=True, timeout=60) as answer, part.open("wb") as out:
        answer.raise_for_status()
        for block in answer.iter_bytes(1 << 20):
            out.write(block)
