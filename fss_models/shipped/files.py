"""The weight files that ship with the package: their folder, their provenance, reading and writing them.

NAME.safetensors holds tensors in half precision; NAME.json beside it records their provenance and is written last. A
file without its json, or with another sha256 than the json's, is refused, so a damaged installation is not used.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from fss_models.errors import FssError
from fss_models.weight_files import file_sha256

CHAMPION = "champion"  # folder of the bundle that is used until one is promoted
REINSTALL = "reinstall the package"
HASH_DIGITS = 16  # digits of a photo's sha256 that are kept, as in bundles
_KEY = "fss-"
_SHA, _PHOTO = re.compile(r"[0-9a-f]{64}"), re.compile(rf"[0-9a-f]{{{HASH_DIGITS}}}")


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """A dataset that training opened: name, licence, and the sha256 (first 16 digits) of every photo it opened."""

    name: str
    licence: str
    photos: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Provenance of a shipped weight file.

    file, sha256   the file's name in the folder, and the hash of its content
    data           the datasets that it was trained on
    recipe         the settings, so that the training can be repeated; commit of the code; seeds of all its runs
    steps, seconds, hardware   the cost of the training
    quality        name -> figure measured on test photos
    licence        terms under which the weights may be used
    created        ISO date
    """

    file: str
    sha256: str
    data: tuple[TrainingData, ...]
    recipe: dict[str, Any]
    commit: str
    seeds: tuple[int, ...]
    steps: int
    seconds: float
    hardware: str
    quality: dict[str, float]
    licence: str
    created: str

    @property
    def photos(self) -> list[str]:
        """The hashes of all photos that training opened, sorted."""
        return sorted({photo for one in self.data for photo in one.photos})


@dataclass(frozen=True, kw_only=True)
class ShippedWeights:
    """An installed weight file."""

    name: str
    path: Path
    provenance: Provenance

    @property
    def key(self) -> str:
        """Name of the file among a model's frozen weights."""
        return weight_key(self.name)

    def verified(self) -> str:
        """Path of the file. Raises `FssError` if the file is not the one that its json describes."""
        found = file_sha256(self.path)
        if found != self.provenance.sha256:
            raise FssError(f"sha256 is {found}, {self.name}.json says {self.provenance.sha256}", where=str(self.path),
                           hint=REINSTALL)
        return str(self.path)


def weight_key(name: str) -> str:
    """Key of the shipped weights `name` in `Segmenter.frozen_weights` and in bundles."""
    return _KEY + name


def shipped_folder() -> Path:
    """Folder of the shipped files: FSS_SHIPPED, by default the package's own folder."""
    return Path(os.environ.get("FSS_SHIPPED") or str(files("fss_models").joinpath("shipped"))).expanduser()


def find_weights(name: str, folder: Path | None = None) -> ShippedWeights | None:
    """Find the shipped weights `name`; None if they are not installed or `name` is empty.

    Raises `FssError` for weights without a json, or with an incomplete one.
    """
    folder = folder or shipped_folder()
    path, about = folder / f"{name}.safetensors", folder / f"{name}.json"
    if not name or not path.is_file():
        return None
    if not about.is_file():
        raise FssError("has no provenance", where=str(path),
                       hint=f"{about.name} is missing: {REINSTALL}")
    provenance = read_provenance(about)
    if provenance.file != path.name:
        raise FssError(f"describes {provenance.file!r}", where=str(about), hint=REINSTALL)
    return ShippedWeights(name=name, path=path, provenance=provenance)


def list_weights(folder: Path | None = None) -> list[ShippedWeights]:
    """All shipped weights, by name. Raises `FssError` as `find_weights` does."""
    folder = folder or shipped_folder()
    found = [find_weights(p.stem, folder) for p in sorted(folder.glob("*.safetensors"))]
    return [w for w in found if w is not None]


def bundle_url(given: str) -> str:
    """URL of a bundle: `shipped` is the shipped champion, `shipped:NAME` any shipped bundle, all else is a URL already.

    Raises `FssError` if no such bundle ships, naming those that do.
    """
    word, _, name = given.partition(":")
    if word != "shipped" or given.startswith("shipped://"):
        return given
    place = shipped_folder() / (name or CHAMPION)
    if not (place / "bundle.json").is_file():
        known = sorted(str(p.parent.relative_to(shipped_folder())) for p in shipped_folder().rglob("bundle.json"))
        raise FssError(f"no bundle {name or CHAMPION!r} ships with this installation",
                       hint=f"shipped bundles: {', '.join(known) or 'none'}")
    return str(place)


def write_weights(name: str, state: Mapping[str, Tensor], *, folder: Path | None = None, **about: Any) -> Provenance:
    """Write `state` as the shipped weights `name`, floating tensors in half precision.

    `about` are the fields of `Provenance` except `file` and `sha256`. Raises `FssError` for values that half precision
    cannot hold and for malformed hashes; nothing is written then.
    """
    folder = folder or shipped_folder()
    content = save_tensors(to_half(state))
    provenance = Provenance(file=f"{name}.safetensors", sha256=hashlib.sha256(content).hexdigest(), **about)
    text = json.dumps(asdict(provenance), indent=1)
    parse_provenance(json.loads(text), str(folder / f"{name}.json"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").unlink(missing_ok=True)  # else the new file could stand beside the old description
    for target, written in ((folder / provenance.file, content), (folder / f"{name}.json", f"{text}\n".encode())):
        hidden = target.with_name(f".tmp-{target.name}")
        hidden.write_bytes(written)
        hidden.replace(target)
    return provenance


def check_frozen(frozen: Mapping[str, str], where: str, folder: Path | None = None) -> list[ShippedWeights]:
    """Find the shipped weights among a bundle's frozen ones, name -> sha256.

    Raises `FssError` naming the bundle `where` if one of them is not installed, or is another file.
    """
    names = {key.removeprefix(_KEY): sha for key, sha in frozen.items() if key.startswith(_KEY)}
    found = []
    for name, sha in names.items():
        weights = find_weights(name, folder)
        if weights is None:
            raise FssError(f"needs the shipped weights {name!r} (sha256 {sha[:12]}...), which are not installed",
                           where=where, hint="install the release of fss that the bundle was made with")
        if weights.provenance.sha256 != sha:
            raise FssError(f"was made with other shipped weights {name!r} (sha256 {sha[:12]}..., installed "
                           f"{weights.provenance.sha256[:12]}...)", where=where,
                           hint="install the release of fss that it was made with, or train it again")
        found.append(weights)
    return found


def to_half(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert floating tensors to half precision, on the CPU. Raises `FssError` naming one that does not fit."""
    half = {k: (v.half() if v.is_floating_point() else v).detach().cpu().contiguous() for k, v in state.items()}
    for key, value in half.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise FssError(f"{key!r} is not finite in half precision", hint="keep it in full precision")
    return half


def read_provenance(path: Path) -> Provenance:
    """Read the json beside shipped weights. Raises `FssError` naming the first thing that is wrong with it."""
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise FssError(f"is not JSON: {error}", where=str(path), hint=REINSTALL) from error
    return parse_provenance(content, str(path))


def parse_provenance(content: Any, where: str) -> Provenance:
    """The provenance in `content`, the JSON of the file `where`. Raises `FssError` naming the first thing wrong."""
    given = _fields(content, Provenance, where)
    if not isinstance(given["data"], list):
        raise FssError("data is not a list", where=where, hint=REINSTALL)
    data = tuple(TrainingData(**_fields(one, TrainingData, where)) for one in given["data"])
    for wrong in (p for one in data for p in one.photos if not _PHOTO.fullmatch(str(p))):
        raise FssError(f"{wrong!r} is not the first {HASH_DIGITS} digits of a photo's sha256", where=where)
    if not _SHA.fullmatch(str(given["sha256"])):
        raise FssError(f"sha256 is {given['sha256']!r}", where=where, hint=REINSTALL)
    return Provenance(**(given | {"data": data, "seeds": tuple(given["seeds"])}))


def _fields(content: Any, kind: type, where: str) -> dict[str, Any]:
    """Return `content` if it has exactly the fields of the dataclass `kind`; lists of photos become tuples."""
    if not isinstance(content, dict):
        raise FssError(f"is not a {kind.__name__}", where=where, hint=REINSTALL)
    known = {f.name for f in fields(kind)}
    for key in sorted(known ^ content.keys()):
        raise FssError(f"{'lacks' if key in known else 'has unknown'} {key!r}", where=where, hint=REINSTALL)
    return {k: tuple(v) if k == "photos" else v for k, v in content.items()}
