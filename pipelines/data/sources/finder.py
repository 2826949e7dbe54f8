"""Finds the file that a record of an annotation file names among the files below the root, for all formats.

Exports name photos as their tools saw them: with backslashes, with folders of another machine, as URLs, in another
Unicode normal form, or without a suffix. A file is found by the longest tail of its path that the record shares.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from fss_models.errors import FssError
from fss_models.photo_files import PHOTO_SUFFIXES

_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")
_CLOUD = ("s3://", "gs://", "azure-blob://", "r2://", "oci://")  # their keys may contain any character


class FoundFile(NamedTuple):
    """A file below the root. whole: whether its path agrees with all folders that the record names."""

    path: str
    whole: bool


class FileFinder:
    """The files below a root (paths with slashes), found by the names that records give them.

    Of a record's name, the readings of `readings` are tried. The file with the longest common tail (name and folders)
    wins; ties go to the earlier reading, then to equal case and Unicode normal forms, then to a file whose whole path
    is the record's. A name without an image suffix finds `NAME.jpg` and the like if nothing else fits.
    """

    def __init__(self, files: Iterable[str]) -> None:
        self._by_name: dict[str, list[str]] = defaultdict(list)
        for file in files:
            self._by_name[_fold(file.rpartition("/")[2])].append(file)
        self._by_stem: dict[str, list[str]] | None = None

    def has(self, name: str) -> bool:
        """Whether any file below the root has the file name of this path, in any reading of it."""
        return any(_fold(parts[-1]) in self._by_name for parts in map(_parts, readings(name)) if parts)

    def find(self, name: str) -> str | None:
        """The path of the file below the root, None if there is none. Raises `FssError` as `match` does."""
        found = self.match(name)
        return found.path if found else None

    def match(self, name: str, *, within: str = "", without: Collection[str] = (),
              prefer: Callable[[str], bool] | None = None) -> FoundFile | None:
        """The file that a record names, None if there is none.

        within: folder that comes before the name where there is such a file; without: names of folders in which the
        file cannot be; prefer: decides between files that fit equally well, if it is true of exactly one. Raises
        `FssError` if several files fit equally well.
        """
        found = self._best(name, self._by_name, within, without)
        if not found:
            found = self._best(name, self._stems(), within, without, stems=True)
        if len(found) > 1 and prefer is not None and sum(map(prefer, (f.path for f in found))) == 1:
            found = [f for f in found if prefer(f.path)]
        if len(found) > 1:
            raise FssError(ambiguous([f.path for f in found], "this name"),
                           hint="write the folder of each photo into its record")
        return found[0] if found else None

    def _best(self, name: str, table: dict[str, list[str]], within: str, without: Collection[str], *,
              stems: bool = False) -> list[FoundFile]:
        """The files that fit best, all equally well."""
        best: tuple[int, ...] = ()
        found: dict[str, FoundFile] = {}
        folders = _parts(within)
        for number, named in enumerate(map(_parts, readings(name))):
            parts = [*folders, *named]
            for file in table.get(_fold(named[-1]), []) if named else []:
                own = file.split("/")
                if stems:
                    own[-1] = _stem(own[-1])
                if without and not set(own[:-1]).isdisjoint(without):
                    continue
                tail = _common_tail(parts, own, _fold)
                score = (tail, -number, _common_tail(parts, own, _nfc), _common_tail(parts, own, str),
                         int(tail == len(own)))
                if score >= best:
                    found = {} if score > best else found
                    best, found[file] = score, FoundFile(file, tail >= len(named))
        return list(found.values())

    def _stems(self) -> dict[str, list[str]]:
        if self._by_stem is None:
            self._by_stem = defaultdict(list)
            for files in self._by_name.values():
                for file in files:
                    self._by_stem[_fold(_stem(file.rpartition("/")[2]))].append(file)
        return self._by_stem


def ambiguous(photos: Collection[str], what: str) -> str:
    """Why none of several photos is read that one record, label file or mask may mean: the rule of all formats.

    Photos such as a.jpg and a.png may be copies or different ones. So `what` they have in common is never given to one
    of them by a guess; all are refused, with the first two named.
    """
    first, second = sorted(photos)[:2]
    return f"{len(photos)} photos have {what}, the first {first} and {second}"


def readings(name: str) -> Iterator[str]:
    """What the name of a file in a record may mean, the most literal first, without repeats.

    `a%20b.jpg` is that name or `a b.jpg`; of `https://host/a.jpg?X=1` the query does not belong to the name, and in
    `/data/local-files/?d=a/b.jpg` it is the name. Keys of a bucket (`s3://bucket/a#1.jpg`) may contain `#` and `?`.
    """
    yield from dict.fromkeys((*_readings(name), *_readings(name.strip())))


def _readings(name: str) -> Iterator[str]:
    plain = [_without_bucket(name) if name.lower().startswith(_CLOUD) else name]
    if ("?" in name or "#" in name) and not name.lower().startswith(_CLOUD):
        try:
            parts = urlsplit(name)
            plain += [*parse_qs(parts.query).get("d", [])[:1], parts.path]
        except ValueError:  # no URL after all, such as one with half a bracket
            pass
    yield from plain
    yield from (unquote(text) for text in plain if "%" in text)


def _without_bucket(url: str) -> str:
    return _SCHEME.sub("", url).partition("/")[2]


def _parts(name: str) -> list[str]:
    """The folders and the name of a path of any system. The scheme of a URL is a folder that no file has."""
    return [p for p in name.replace("\\", "/").split("/") if p not in ("", ".", "..")]


def _nfc(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _fold(text: str) -> str:
    return _nfc(text).lower()


def _stem(name: str) -> str:
    """A file name without its image suffix."""
    suffix = next((s for s in PHOTO_SUFFIXES if name.lower().endswith(s)), "")
    return name[: len(name) - len(suffix)]


def _common_tail(one: list[str], other: list[str], key: Callable[[str], str]) -> int:
    """How many parts agree, counted from the end."""
    count = 0
    for a, b in zip(reversed(one), reversed(other), strict=False):
        if a != b and key(a) != key(b):
            break
        count += 1
    return count
