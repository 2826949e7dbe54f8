"""Label sets: the support sets of several classes, from one file or from a folder with one folder for each class.

    {"classes": [{"class_name": "cup", "supports": [...]}, {"class_name": "fork", "supports": [...]}]}

    supports/cup/a.jpg   supports/cup/a.png         a photo and its mask: the PNG of the same name, or NAME_mask.png
                                                    (.tif, .bmp, .gif or lossless .webp)
    supports/fork/supports.json                     or a supports file; the class has the name of the folder

A folder that holds supports.json or no folders is a single class.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from pydantic import Field

from fss_models.errors import FssError
from fss_models.forms import Form, read_form
from fss_models.photo_files import is_photo
from pipelines.base.junk import is_junk
from pipelines.base.storage import Store
from pipelines.config.mask_request import MAX_CLASSES
from pipelines.inference.support_files import fetcher, read_supports
from pipelines.inference.supports import SupportSet

FILE = "supports.json"
MASK = "_mask"
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif", ".webp")


class LabelSet(Form):
    """The content of a supports file of several classes, each as `SupportRequest` describes."""

    classes: list[Any] = Field(min_length=1)


def read_label_set(url: str) -> list[SupportSet]:
    """The support sets, one a class, of a supports file (one class, or a list `classes`) or a folder, local or s3://.

    Raises `FssError` with one line for a mistake, for two classes with the same name or the same supports.
    """
    store = Store(url)
    inside = [f for f in store.list() if not store.url.endswith(f)]  # the listing of a file is the file itself
    found = _read_folder(store, inside) if inside else _read_file(url)
    if len(found) > MAX_CLASSES:
        raise FssError(f"has {len(found)} classes", where=url, hint=f"one job takes at most {MAX_CLASSES}")
    for kind, keys in (("name", [s.class_name for s in found]), ("supports", [s.support_id for s in found])):
        twice = next((s.class_name for i, s in enumerate(found) if keys[i] in keys[:i]), None)
        if twice is not None:
            raise FssError(f"class {twice!r} has the same {kind} as another class", where=url,
                           hint="leave one of them out")
    return found


def _read_file(url: str) -> list[SupportSet]:
    file = Store(url)
    content, fetch, name = file.read_json(), fetcher(file.parent), file.name
    if not isinstance(content, dict) or "classes" not in content:
        return [read_supports(content, fetch, name)]
    classes = read_form(LabelSet, content, name).classes
    return [read_supports(one, fetch, f"{name}: classes[{i}]") for i, one in enumerate(classes)]


def _read_folder(store: Store, files: list[str]) -> list[SupportSet]:
    shown = [f for f in files if not is_junk(f)]
    classes = sorted({f.split("/")[0] for f in shown if "/" in f})
    if not classes or FILE in shown:  # the folder is the class
        return [_read_class(store.parent, store.name, [f"{store.name}/{f}" for f in shown])]
    loose = next((f for f in shown if "/" not in f and is_photo(f)), None)
    if loose is not None:
        raise FssError(f"{loose} lies beside the folders of classes", where=store.url, hint="move it into one of them")
    return [_read_class(store, c, [f for f in shown if f.startswith(f"{c}/")]) for c in classes]


def _read_class(store: Store, name: str, files: list[str]) -> SupportSet:
    """The support set of the class `name`, whose folder holds `files`."""
    where = store.path(name)
    if f"{name}/{FILE}" in files:
        content = store.read_json(f"{name}/{FILE}")
        named = {"class_name": name, **content} if isinstance(content, dict) else content
        return read_supports(named, fetcher(Store(where)), f"{name}/{FILE}")
    rows: list[dict[str, Any]] = [{"image": image, "mask": mask} for image, mask in _pairs(files, where)]
    return read_supports({"class_name": name, "supports": rows}, fetcher(store), where)


def _pairs(files: list[str], where: str) -> list[tuple[str, str]]:
    """(photo, mask) file names. Raises `FssError` for a photo without a mask or a mask without a photo."""
    pictures = [PurePosixPath(f) for f in files if is_photo(f)]
    masks = {str(p.with_suffix("")).removesuffix(MASK): p for p in pictures if _is_mask(p, pictures)}
    photos = [p for p in pictures if p not in masks.values()]
    lossy = next((p for p in photos if p.stem.endswith(MASK)), None)
    if lossy is not None:
        raise FssError(f"{lossy.name} is a mask in a lossy format", where=where, hint=f"save it as {lossy.stem}.png")
    for photo in photos:
        if str(photo.with_suffix("")) not in masks:
            raise FssError(f"{photo.name} has no mask", where=where,
                           hint=f"put {photo.stem}.png or {photo.stem}{MASK}.png beside it, or write {FILE}")
    lonely = sorted(masks.keys() - {str(p.with_suffix("")) for p in photos})
    if lonely:
        raise FssError(f"{masks[lonely[0]].name} is a mask without a photo", where=where,
                       hint="put its photo beside it, or remove the mask")
    return [(str(p), str(masks[str(p.with_suffix(""))])) for p in photos]


def _is_mask(picture: PurePosixPath, pictures: list[PurePosixPath]) -> bool:
    twin = any(p != picture and p.with_suffix("") == picture.with_suffix("") for p in pictures)
    suffix = picture.suffix.lower()
    return (suffix == ".png" and twin) or (suffix in MASK_SUFFIXES and picture.stem.endswith(MASK))
