"""The photos of `fss label --watch` as they arrive: found by listing the place again, each taken once.

The listing of the job's folder only grows, photo ids with it:

    listing/page-000000.parquet   names, sizes and versions; the last page is written again with what arrives
    listing/about.json            the photos of each page: what it does not count was not taken
    relabel.json                  photos that are being labelled again, while they are

A photo is known by its name. What is in a bucket is whole; a local file is taken once two looks in a row have found the
same size and time of change. An empty file waits, and one whose name is not UTF-8. A photo that could not be read, such
as one whose writer paused, is tried again when it has changed.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice

import numpy as np

from fss_models.errors import FssError
from fss_models.photo_files import UNREAD_SUFFIXES, is_photo
from pipelines.base.conditional import etag
from pipelines.base.files import File, OutOfOrderError, iter_files
from pipelines.base.storage import Store
from pipelines.labelling.decisions import Decision, add_decisions, read_decisions
from pipelines.labelling.inputs import Inputs, matcher
from pipelines.labelling.listing import (
    ABOUT,
    ImageList,
    Photo,
    Totals,
    page_name,
    page_table,
    photos_of,
    read_listing,
    write_page,
)

RELABEL = "relabel.json"
PAGE = 5000  # photos of a page: the last one is written again for each batch
MOST = 50_000  # photos of a batch; what else has arrived waits for the next one
AT_A_TIME = 1000  # files
MOST_UNREAD = 1000  # names of pictures in other formats that are kept


@dataclass
class Arrived:
    """What one look has found. `new` and `changed` (overwritten, to be labelled again) can be taken.

    waiting: photos that may still be written, or are too many; overwritten: photos that keep their labels; unread:
    pictures in formats that are not read
    """

    new: list[Photo] = field(default_factory=list)
    changed: list[Photo] = field(default_factory=list)
    waiting: int = 0
    overwritten: int = 0
    unread: list[str] = field(default_factory=list)


class Arrivals:
    """The photos that arrive at `inputs`, and the listing in the folder `out` of those that were taken.

    unreadable: photos without a label, which are tried again when they have changed; relabel: so are all others;
    skipped: folders below the place whose files are no photos
    """

    def __init__(self, out: Store, inputs: Inputs, *, relabel: bool = False, skipped: Sequence[str] = ()) -> None:
        self._out, self._inputs, self._relabel = out, inputs, relabel
        self._skipped = tuple(f"{folder}/" for folder in skipped)
        self._fits = matcher(inputs.pattern) if inputs.pattern else None
        self.unreadable: frozenset[str] = frozenset()
        self._looked: dict[str, File] = {}  # what the last look found and left
        self.images = read_listing(out) or ImageList(inputs.root.url, Totals(
            inputs=inputs.kind, hash=uuid.uuid4().hex), {}, out)
        self.images.url = inputs.root.url
        self._tag = self._about_tag()
        self._names, self._versions = _KnownHashes(), _KnownHashes()
        for page in range(len(self.images.totals.pages)):
            self._remember(self._page(page))

    def _page(self, page: int) -> list[Photo]:
        """The photos of a page that are counted: others are of a batch that was not taken."""
        return list(islice(photos_of(self._out.read_table(page_name(page))), self.images.totals.pages[page]))

    def _remember(self, photos: Sequence[Photo]) -> None:
        self._names.add(_hashes(p.name for p in photos))
        self._versions.add(_hashes(map(_version, photos)))

    def look(self) -> Arrived:
        """List the place once. Raises `FssError` if it cannot be listed."""
        try:
            return self._look(by_folder=False)
        except OutOfOrderError:
            return self._look(by_folder=True)

    def _look(self, *, by_folder: bool) -> Arrived:
        found, left = Arrived(), dict[str, File]()
        files = iter_files(self._inputs.root, prefix=self._inputs.prefix, by_folder=by_folder)
        while some := list(islice(files, AT_A_TIME)):
            mine = [f for f in some if self._is_wanted(f, found)]
            known = self._names.among(_hashes(f.path for f in mine))
            same = known & self._versions.among(_hashes(_version(_photo(f)) for f in mine))
            for file, is_known, is_same in zip(mine, known, same, strict=True):
                if is_known and not self._relabel and file.path not in self.unreadable:
                    found.overwritten += not is_same
                elif not is_same and not self._taken(file, found, changed=bool(is_known)):
                    found.waiting += 1
                    if len(left) < 2 * MOST:
                        left[file.path] = file
        self._looked = left
        return found

    def _is_wanted(self, file: File, found: Arrived) -> bool:
        if file.path.startswith(self._skipped) or (self._fits and not self._fits.fullmatch(file.path)):
            return False
        if file.path.lower().endswith(UNREAD_SUFFIXES) and len(found.unread) < MOST_UNREAD:
            found.unread.append(file.path)
        return is_photo(file.path)

    def _taken(self, file: File, found: Arrived, *, changed: bool) -> bool:
        """Add a whole photo to what was found. Whether it is one, and there is room."""
        whole = file.size > 0 and (not self._inputs.root.is_local or self._looked.get(file.path) == file)
        if not whole or not _is_utf8(file.path) or len(found.new) + len(found.changed) >= MOST:
            return False
        (found.changed if changed else found.new).append(_photo(file))
        return True

    def take(self, arrived: Arrived) -> None:
        """Add the new photos to the listing, and note those that are to be labelled again.

        Raises `FssError` if another process has added photos meanwhile.
        """
        if self._about_tag() != self._tag:
            raise FssError("another `fss label --watch` labels into this folder", where=self._out.url,
                           hint="stop one of them, then start the other one again")
        if arrived.changed:
            self._out.write_json(RELABEL, [p._asdict() for p in arrived.changed])
        pages = list(self.images.totals.pages)
        rows = list(arrived.new)
        if pages and rows and pages[-1] < PAGE:
            rows = [*self._page(len(pages) - 1), *rows]
            pages.pop()
        for start in range(0, len(rows), PAGE):
            write_page(self._out, len(pages), page_table(rows[start:start + PAGE]))
            pages.append(len(rows[start:start + PAGE]))
        self._remember(arrived.new)
        self._save(pages=pages, unread=arrived.unread, seen=self.images.totals.seen + len(arrived.new))

    def _save(self, **changes: object) -> None:
        totals = replace(self.images.totals, **changes)  # type: ignore[arg-type]
        self._out.write_json(ABOUT, {"url": self.images.url, **asdict(totals)})
        self.images = ImageList(self.images.url, totals, {}, self._out)
        self._tag = self._about_tag()

    def _about_tag(self) -> str | None:
        """What changes when a bucket's about.json is written; a local folder is locked instead."""
        return etag(self._out, ABOUT) if self._out.is_s3 else None

    def begin_relabelling(self) -> frozenset[int]:
        """The photos to label again, counted from 0: their versions are listed, and decisions about them undone.

        It may be repeated: what a process that was killed has left is done again.
        """
        if not self._out.exists(RELABEL):
            return frozenset()
        changed = {one["name"]: Photo(**one) for one in self._out.read_json(RELABEL)}
        found, row = set[int](), 0
        for page, count in enumerate(self.images.totals.pages):
            photos = self._page(page)
            here = [i for i, photo in enumerate(photos) if photo.name in changed]
            if here:
                self._versions.remove(_hashes(_version(photos[i]) for i in here))
                write_page(self._out, page, page_table([changed.get(p.name, p) for p in photos]))
            found.update(row + i for i in here)
            row += count
        self._remember(list(changed.values()))
        self._save(seen=self.images.totals.seen + len(found))
        undone = [d for d in read_decisions(self._out).values() if d.image_id - 1 in found]
        if undone:
            add_decisions(self._out, [Decision(image_id=d.image_id, image=d.image, class_name=d.class_name,
                                               decision="undo") for d in undone])
        return frozenset(found)

    def end_relabelling(self) -> None:
        """The parts have the new labels."""
        self._out.delete(RELABEL)


class _KnownHashes:
    """Hashes of 8 bytes, sorted: a million names take 8 MB."""

    def __init__(self) -> None:
        self._sorted = np.empty(0, dtype=np.uint64)

    def add(self, hashes: np.ndarray) -> None:
        self._sorted = np.union1d(self._sorted, hashes)

    def remove(self, hashes: np.ndarray) -> None:
        self._sorted = np.setdiff1d(self._sorted, hashes)

    def among(self, hashes: np.ndarray) -> np.ndarray:
        """Which of the hashes [N] are known, as [N] bool."""
        at = np.searchsorted(self._sorted, hashes)
        found: np.ndarray = (at < len(self._sorted)) & (np.append(self._sorted, np.uint64(0))[at] == hashes)
        return found


def _hashes(texts: Iterable[str]) -> np.ndarray:
    data = (text.encode(errors="surrogateescape") for text in texts)
    return np.fromiter((int.from_bytes(hashlib.blake2b(d, digest_size=8).digest(), "little") for d in data),
                       dtype=np.uint64)


def _photo(file: File) -> Photo:
    return Photo(file.path, file.size, version=file.version)


def _version(photo: Photo) -> str:
    return f"{photo.name}\0{photo.size}\0{photo.version}"


def _is_utf8(name: str) -> bool:
    """Others wait until they are renamed: labels could not name them."""
    return not any(0xD800 <= ord(c) < 0xE000 for c in name)
