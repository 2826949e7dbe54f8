"""The photos of a job: what --images names, in order and numbered from 1, and what is left out beside them."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import Any

from fss_models.errors import FssError
from fss_models.photo_files import PHOTO_SUFFIXES
from pipelines.base.storage import Store, join
from pipelines.labelling.inputs import ListColumns, list_files, list_rows, list_tars, read_inputs
from pipelines.labelling.listing import ImageList, LeftOut, ListingWriter, read_listing, shown
from pipelines.labelling.photo_reader import PhotoReader

__all__ = ["ImageList", "PhotoReader", "check_out", "keep_unread", "kept_images", "left_out", "list_images"]

UNREAD = "unread.json"
SHOWN = 6  # suffixes in a line about files that are left out


def list_images(url: str, limit: int = 0, *, outs: Sequence[str] = (), keep: Store | None = None,
                columns: ListColumns | None = None) -> ImageList:
    """All photos that `url` names (the first `limit`, 0: all), without junk and those in `outs`, the folders of jobs.

    `url` is what --images may be (`inputs`). Linked folders are followed. Pages of a long listing go to the job's
    folder `keep`, and one that was interrupted goes on there; that of a list begins again, as it has to know all URLs.
    Raises `FssError` if there are none, and for a name that is not UTF-8.
    """
    inputs = read_inputs(url)
    columns = columns or ListColumns()
    place = url if inputs.kind == "list" else inputs.root.url
    begun = ListingWriter(place, inputs.kind, keep, _arguments(url, limit, columns))
    writer = begun.fresh() if inputs.kind == "list" else begun.resumed()
    if inputs.kind == "list":
        list_rows(writer, inputs, columns, limit)
    elif inputs.kind == "tar":
        list_tars(writer, inputs, limit)
    else:
        written = tuple(f"{place}/" for out in outs if (place := within(inputs.root, Store(out))))
        writer = list_files(writer, inputs, limit, written)
    found = writer.finish()
    if not len(found):
        raise _no_photos(url, found)
    return found


def kept_images(out: Store, url: str, limit: int, columns: ListColumns) -> ImageList | None:
    """The photos of an unfinished job as they were listed when it began, if the arguments are the same."""
    found = read_listing(out)
    same = found is not None and json.loads(found.totals.wanted) == _arguments(url, limit, columns)
    return found if same else None


def _arguments(url: str, limit: int, columns: ListColumns) -> dict[str, Any]:
    return {"url": Store(url).url, "limit": limit, **asdict(columns)}


def _no_photos(url: str, found: ImageList) -> FssError:
    suffixes = Counter(found.totals.others) + _suffixes(found.unread)
    if found.totals.inputs == "list":
        return FssError(f"lists no photos{_rows_left(found)}", where=url, hint="check the list")
    held = f", but {_counted(suffixes)}" if suffixes else ""
    packed = next((s for s in (".tar", ".parquet", ".csv") if suffixes[s]), "")
    hint = (f"for photos in or of these files, give {join(url, f'*{packed}')!r}" if packed and
            found.totals.inputs == "folder" else f"names of photos end in {', '.join(PHOTO_SUFFIXES)}")
    return FssError(f"holds no photos{held}", where=url, hint=hint)


def left_out(images: ImageList) -> list[str]:
    """Lines for people about the files that are not labelled, by suffix; none if there are none."""
    told = [f"left out: {_counted(_suffixes(images.unread))}, which are not read: save them as JPEG or PNG"]
    others = [f"left out, as they are no photos: {_counted(Counter(images.totals.others))}"]
    rows = [f"the list has {images.totals.seen:,} rows{_rows_left(images)}"]
    return ((told if images.unread else []) + (others if images.totals.others else [])
            + (rows if images.totals.inputs == "list" else []))


def _rows_left(images: ImageList) -> str:
    left = images.totals.left
    return f"; left out: {', '.join(f'{n:,} {kind}' for kind, n in sorted(left.items()))}" if left else ""


def keep_unread(out: Store, images: ImageList) -> None:
    """Write the rows of failures.parquet about what is not labelled, and the listing, into a job's folder."""
    reason = "photos of this format are not read: save it as JPEG or PNG"
    rows = [{"file_name": shown(n), "stage": "read", "reason": reason} for n in images.unread]
    for one in map(LeftOut._make, images.totals.rows):
        rows.append({"file_name": one.name, "stage": "list", "reason": one.reason,
                     **({} if one.source_id is None else {"source_id": one.source_id})})
    if rows:
        out.write_json(UNREAD, rows)
    images.save(out)


def _suffixes(names: Iterable[str]) -> Counter[str]:
    return Counter(PurePosixPath(n).suffix.lower() for n in names)


def _counted(suffixes: Counter[str]) -> str:
    """Such as "3 .txt, 1 .json"; of many suffixes the most frequent ones."""
    shown = [f"{n} {suffix or 'without a suffix'}" for suffix, n in suffixes.most_common(SHOWN)]
    rest = sum(suffixes.values()) - sum(n for _, n in suffixes.most_common(SHOWN))
    return ", ".join([*shown, *([f"{rest} others"] if rest else [])])


def check_out(url: str, out: str) -> None:
    """Raises `FssError` if `out` is the folder of the photos, where outputs would be taken for photos."""
    if within(Store(url), Store(out)) == ".":
        raise FssError("is the folder of --images", where=out, hint="choose another --out; a folder below it is fine")


def within(outer: Store, inner: Store) -> str:
    """The path of `inner` relative to `outer`; "." if they are the same, "" if `inner` is not below `outer`."""
    here, there = (PurePosixPath(os.path.realpath(s.url) if s.is_local else s.url) for s in (outer, inner))
    return str(there.relative_to(here)) if there.is_relative_to(here) else ""
