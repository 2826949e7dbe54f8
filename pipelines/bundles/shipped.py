"""Bundles that ship with the package, by name: `champion`, `folds/NAME`; copying them, and checking all that ships."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from fss_models.errors import FssError
from fss_models.shipped.files import CHAMPION, bundle_url, check_frozen, list_weights, shipped_folder, to_half
from pipelines.base.progress import say
from pipelines.base.storage import Store, join
from pipelines.base.workspace import Workspace
from pipelines.bundles.bundle import BundleInfo, copy_calibrator, read_bundle_info

TENSORS = "model.safetensors"
MAX_BYTES = 30_000_000  # of all that ships


@dataclass(frozen=True, kw_only=True)
class NamedBundle:
    """A bundle among several below one place."""

    name: str
    url: str
    info: BundleInfo
    size: int  # bytes of its tensors


def champion_url(workspace: Workspace) -> str:
    """The workspace's champion, or the one that ships where it has none; its own place where there is neither."""
    own = (shipped_folder() / CHAMPION / "bundle.json").is_file()
    if not own or Store(workspace.champion).exists("bundle.json"):
        return workspace.champion
    return bundle_url("shipped")


def say_if_shipped(url: str, workspace: Workspace) -> None:
    """Tell the person where the shipped champion stands in for the workspace's."""
    if url == str(shipped_folder() / CHAMPION):
        info = read_bundle_info(url)
        say(f"no champion at {workspace.champion}: taking the one that ships with fss ({info.method}/{info.preset}, "
            f"bundle {info.bundle_id})")


def list_bundles(place: str = "") -> list[NamedBundle]:
    """The bundles below `place`, by default the package's, by name."""
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
    """Copy a bundle; with `half` its tensors in half precision, which makes it another bundle of half the size.

    Of local paths in the provenance of such a bundle, meant to be given away, only the last part stays.

    Raises `FssError` for half a bundle, for a target that holds another one, and for values that half precision
    cannot hold.
    """
    info, data = _whole(source)
    if half and data:
        data = save_tensors(to_half(load_tensors(data)))
        made = {"tensors_sha256": hashlib.sha256(data).hexdigest(),
                "provenance": _without_places({**info.provenance, "half_precision_of": info.bundle_id})}
        info = info.model_copy(update=made)
    store = Store(target)
    if store.exists("bundle.json") and read_bundle_info(target) != info:
        raise FssError("holds another bundle", where=target, mend="give an empty folder")
    store.write_bytes(TENSORS, data)
    copy_calibrator(source, target)
    store.write_json("bundle.json", info.model_dump())
    return info


def _without_places(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_places(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_places(v) for v in value]
    return PurePath(value).name if isinstance(value, str) and value.startswith("/") else value


def find_bundle(name: str, place: str = "") -> str:
    """The URL of the bundle `name` below `place` (default: the package's). Raises `FssError` naming the known ones."""
    if not place:
        return bundle_url(f"shipped:{name}")
    if not Store(join(place, name)).exists("bundle.json"):
        known = ", ".join(b.name for b in list_bundles(place)) or "none"
        raise FssError(f"has no bundle {name!r}", where=place, mend=f"known: {known}")
    return join(place, name)


def shipped_problems(folder: Path | None = None) -> list[str]:
    """What is wrong with the shipped files: one line each, empty where all is as it says."""
    folder = folder or shipped_folder()
    checks: list[Callable[[], object]] = [
        lambda: [w.verified() for w in list_weights(folder)],
        *(partial(_check_bundle, p.parent, folder) for p in sorted(folder.rglob("bundle.json"))),
    ]
    wrong = [f"{about}: describes a file that is not there" for about in sorted(folder.glob("*.json"))
             if not about.with_suffix(".safetensors").is_file()]
    for check in checks:
        try:
            check()
        except FssError as error:
            wrong.append(str(error))
    if (size := shipped_bytes(folder)) > MAX_BYTES:
        wrong.append(f"{folder}: {size / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:.0f}")
    return wrong


def _check_bundle(place: Path, folder: Path) -> None:
    """Raises `FssError` for half a bundle, and one on other shipped weights than those in `folder`."""
    info, _ = _whole(str(place))
    check_frozen(info.frozen, str(place), folder)


def _whole(url: str) -> tuple[BundleInfo, bytes]:
    info, data = read_bundle_info(url), Store(url).read_bytes(TENSORS)
    if hashlib.sha256(data).hexdigest() != info.tensors_sha256:
        raise FssError(f"{TENSORS} does not match bundle.json", where=url, mend="promote or train it again")
    return info, data


def shipped_bytes(folder: Path | None = None) -> int:
    """Bytes of everything that ships."""
    return sum(p.stat().st_size for p in (folder or shipped_folder()).rglob("*")
               if p.is_file() and p.suffix in (".safetensors", ".json"))
