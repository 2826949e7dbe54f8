"""Bundles that ship with the package (`champion`, `folds/NAME`): finding, copying and checking them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from fss_models.bundle import TENSORS, BundleInfo
from fss_models.errors import FssError
from fss_models.shipped.files import CHAMPION, bundle_url, check_frozen, list_weights, shipped_folder, to_half
from pipelines.base.progress import say
from pipelines.base.storage import Store, join
from pipelines.base.workspace import Workspace
from pipelines.bundles.bundle import read_bundle_files, read_bundle_info
from pipelines.bundles.hub import check_files, hub_place, on_hub

OWN_PLACES = ("/", "s3://", "gs://", "az://", "abfs://", "abfss://")
MAX_BYTES = 30_000_000  # largest size of all shipped files together


@dataclass(frozen=True, kw_only=True)
class NamedBundle:
    """A bundle below a folder of bundles."""

    name: str  # its path below that folder
    url: str
    info: BundleInfo
    size: int  # bytes of its tensors


def champion_url(workspace: Workspace) -> str:
    """URL of the workspace's champion; where it has none, of the shipped one, if one ships."""
    own = (shipped_folder() / CHAMPION / "bundle.json").is_file()
    if not own or Store(workspace.champion).exists("bundle.json"):
        return workspace.champion
    return bundle_url("shipped")


def say_if_shipped(url: str, workspace: Workspace) -> None:
    """Print a line if the bundle at `url` is the shipped champion, used because the workspace has none."""
    if url == str(shipped_folder() / CHAMPION):
        info = read_bundle_info(url)
        say(f"there is no champion at {workspace.champion}: using the one that ships with fss "
            f"({info.method}/{info.preset}, bundle {info.bundle_id})")


def list_bundles(place: str = "") -> list[NamedBundle]:
    """The bundles below the folder `place` (default: those of the package), sorted by name."""
    store = Store(place or str(shipped_folder()))
    if not store.exists():
        return []
    names = [n.removesuffix("/bundle.json") for n in store.list(suffix="/bundle.json")]
    found = []
    for name in sorted(names):
        url = store.path(name)
        found.append(NamedBundle(name=name, url=url, info=read_bundle_info(url), size=store.size(f"{name}/{TENSORS}")))
    return found


def copy_bundle(source: str, target: str, *, half: bool = False) -> BundleInfo:
    """Copy a bundle; with `half`, tensors are converted to half precision: a different bundle of half the size.

    With `half`, paths in the provenance are cut to their last part, because such a bundle is meant to be shared.

    Raises `FssError` if the source is incomplete, if the target folder has another bundle, and for values outside the
    range of half precision.
    """
    info, files = read_bundle_files(source)
    if half and (data := files[TENSORS]):
        files[TENSORS] = data = save_tensors(to_half(load_tensors(data)))
        made = {"tensors_sha256": hashlib.sha256(data).hexdigest(),
                "provenance": without_places({**info.provenance, "half_precision_of": info.bundle_id})}
        info = info.model_copy(update=made)
    store = Store(target)
    if store.exists("bundle.json") and read_bundle_info(target) != info:
        raise FssError("this folder already has another bundle", where=target, hint="give an empty folder")
    for name, content in files.items():
        store.write_bytes(name, content)
    store.write_json("bundle.json", info.model_dump())
    return info


def without_places(value: Any) -> Any:
    """JSON with local paths and those in buckets cut to their last part, for what is shared."""
    if isinstance(value, dict):
        return {k: without_places(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_places(v) for v in value]
    return PurePath(value).name if isinstance(value, str) and value.startswith(OWN_PLACES) else value


def find_bundle(name: str, place: str = "") -> str:
    """URL of the bundle `name` below `place` (default: those of the package), or of one on the hub, `hf://...`.

    Raises `FssError` with the known names if there is no such bundle, and for a repository that holds other files than
    a bundle's.
    """
    if on_hub(name):
        if place:
            raise FssError("a bundle on the hub is below no other place", where=name, hint="leave --from out")
        check_files(hub_place(name))
        return name
    if not place:
        return bundle_url(f"shipped:{name}")
    if not Store(join(place, name)).exists("bundle.json"):
        known = ", ".join(b.name for b in list_bundles(place)) or "none"
        raise FssError(f"there is no bundle {name!r} here", where=place, hint=f"known bundles: {known}")
    return join(place, name)


def shipped_problems(folder: Path | None = None) -> list[str]:
    """Problems of the shipped files, one line each; empty if there are none."""
    folder = folder or shipped_folder()
    checks: list[Callable[[], object]] = [
        lambda: [w.verified() for w in list_weights(folder)],
        *(partial(_check_bundle, p.parent, folder) for p in sorted(folder.rglob("bundle.json"))),
    ]
    wrong = [f"{about}: the .safetensors file that it describes is missing" for about in sorted(folder.glob("*.json"))
             if not about.with_suffix(".safetensors").is_file()]
    for check in checks:
        try:
            check()
        except FssError as error:
            wrong.append(str(error))
    if (size := shipped_bytes(folder)) > MAX_BYTES:
        wrong.append(f"{folder}: the files are {size / 1e6:.1f} MB together, more than {MAX_BYTES / 1e6:.0f} MB")
    return wrong


def _check_bundle(place: Path, folder: Path) -> None:
    """Raises `FssError` if a bundle is incomplete, or built on other shipped weights than those in `folder`."""
    info, _ = read_bundle_files(str(place))
    check_frozen(info.frozen, str(place), folder)


def shipped_bytes(folder: Path | None = None) -> int:
    """Size of all shipped files in bytes."""
    return sum(p.stat().st_size for p in (folder or shipped_folder()).rglob("*")
               if p.is_file() and p.suffix in (".safetensors", ".json"))
