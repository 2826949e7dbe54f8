"""The photos of Label Studio's tasks: which values of a task's data name photos, and which region is on which photo.

References are `/data/upload/1/1a2b3c4d-cup.jpg`, `/data/local-files/?d=a/cup.jpg`, `s3://bucket/a/cup.jpg`, `https://...`
or plain paths. A region belongs to the photo that its `to_name` names, and to the page of its `item_index` in a list.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from fss_models.errors import FssError
from fss_models.photo_files import is_photo
from pipelines.data.sources.finder import FileFinder, readings

_UPLOAD = re.compile(r"^[0-9a-f]{8}-(?=.)")  # what Label Studio puts before the name of an uploaded file
_LOCAL = "/data/local-files/?d="


class TaskPhoto(NamedTuple):
    """A photo of a task: how the task refers to it, and the results that are on it."""

    reference: str
    results: list[dict[str, Any]]


def photos_of_task(task: dict[str, Any], results: list[dict[str, Any]], finder: FileFinder) -> Iterator[TaskPhoto]:
    """The photos of a task that have results, with these. A task without results has its first photo, without any.

    Raises ValueError if it cannot be told on which of several photos a result is.
    """
    by_name: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        if "value" in result:  # relations are on no photo
            by_name.setdefault(str(result.get("to_name", "")), []).append(result)
    found = image_references(task, by_name, finder)
    pixels = [name for name, own in by_name.items() if any(map(_has_pixels, own))]
    named = [name for name in by_name if name in found]
    if len(found) > 1 and named:
        lost = [name for name in pixels if name not in found]
        if lost:
            raise ValueError(f"its regions are on {', '.join(map(repr, lost))}, its photos are {', '.join(found)}")
        for name in named:
            yield from _on_pages(found[name], by_name[name])
        return
    pages = _the_one(found, finder) if len(pixels) < 2 or len(found) == 1 else []
    if not pages:
        raise ValueError(f"it has the photos {', '.join(found)}, and its regions do not say on which they are")
    yield from _on_pages(pages, results)


def _the_one(found: dict[str, list[str]], finder: FileFinder) -> list[str]:
    """The photo that is meant where results do not say so: `image`, or the only one there is below the root."""
    if len(found) == 1 or "image" in found:
        return found.get("image") or next(iter(found.values()))
    there = [pages for pages in found.values() if any(_exists(p, finder) for p in pages)]
    return there[0] if len(there) == 1 else []


def _on_pages(pages: list[str], results: list[dict[str, Any]]) -> Iterator[TaskPhoto]:
    if len(pages) == 1:
        yield TaskPhoto(pages[0], results)
        return
    by_page: dict[int, list[dict[str, Any]]] = {}
    for result in results:
        number = result.get("item_index")
        if isinstance(number, int) and 0 <= number < len(pages):
            by_page.setdefault(number, []).append(result)
        elif _has_pixels(result):
            raise ValueError(f"it has {len(pages)} photos, and a region does not say on which it is (item_index)")
    for number in sorted(by_page):
        yield TaskPhoto(pages[number], by_page[number])


def _has_pixels(result: dict[str, Any]) -> bool:
    return "original_width" in result


def image_references(task: dict[str, Any], names: Collection[str], finder: FileFinder) -> dict[str, list[str]]:
    """The values of a task's data that name photos, by key, as lists of pages; `image` comes first.

    A value without an image suffix counts if its key is in `names` and a file is found for it.
    """
    data = task.get("data")
    found: dict[str, list[str]] = {}
    for key, value in sorted(data.items(), key=lambda pair: pair[0] != "image") if isinstance(data, dict) else ():
        pages = [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str) and v.strip()]
        bare = key in names or key == "image"
        if pages and all(_is_photo(page) or (bare and _exists(page, finder)) for page in pages):
            found[key] = pages
    return found


def _is_photo(reference: str) -> bool:
    return any(is_photo(text) for text in readings(reference))


def _exists(reference: str, finder: FileFinder) -> bool:
    try:
        return find_photo(reference, finder) is not None
    except FssError:  # there are several
        return True


def find_photo(reference: str, finder: FileFinder) -> str | None:
    """The file below the root that a reference names, None if there is none. Raises `FssError` if several fit."""
    path = None
    if _LOCAL in reference:  # as it is written: the finder would read the + of a query as a blank
        path = finder.find(reference.partition(_LOCAL)[2])
    if path is None and (finder.has(reference) or not _plain_name(reference)):
        path = finder.find(reference)
    if path is None and (plain := _plain_name(reference)) and finder.has(plain):
        path = finder.find(plain)
    return path or finder.find(reference)


def _plain_name(reference: str) -> str:
    """The name of a file before its upload, "" if the reference is to no upload."""
    name = shown_name(reference).rpartition("/")[2]
    plain = _UPLOAD.sub("", name)
    return plain if plain != name else ""


def shown_name(reference: str) -> str:
    """The path in a reference, for people."""
    return min((text for text in readings(reference) if is_photo(text)), key=len, default=reference)
