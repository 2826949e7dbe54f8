"""Reads a COCO annotation file in chunks, so that only one chunk is in memory.

The text is scanned as Latin-1, in which every character is one byte, so a position in the text is a position in the
file. A record whose strings matter is parsed again from its bytes as UTF-8.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from fss_models.errors import FssError

CHUNK = 4_000_000  # bytes
_UTF16 = ("\xff\xfe", "\xfe\xff")
_BOM, _SPACE = b"\xef\xbb\xbf", " \t\r\n"


class JsonRecord(NamedTuple):
    """One element of a list at the top level of the file, parsed as Latin-1; its bytes are [start, end)."""

    section: str
    value: Any
    start: int
    end: int


class CocoReader:
    """Reads a file once, from its start. After `records` has ended, `sha256` is that of the whole file.

    Raises `FssError` with the position of the first byte that is not valid JSON.
    """

    def __init__(self, file: BinaryIO, where: str) -> None:
        self.where = where
        self.sections: dict[str, bool] = {}  # name -> whether it is a list
        self.info: Any = None  # what the file says of itself
        self._file, self._hash, self._decode = file, hashlib.sha256(), json.JSONDecoder().raw_decode
        self._text, self._at, self._before, self._ended = "", 0, 0, False

    @property
    def sha256(self) -> str:
        """sha256 of the bytes that were read so far, in hex."""
        return self._hash.hexdigest()

    def records(self) -> Iterator[JsonRecord]:
        """The elements of every list at the top level of the file, in order. Other values are skipped."""
        self._more(max(CHUNK, len(_BOM)))
        self._at = 3 if self._text.startswith(_BOM.decode("latin-1")) else 0
        if self._text[:2] in _UTF16 or "\0" in self._text[:4]:
            raise FssError("the file is UTF-16, not UTF-8", where=self.where, hint="save it again as UTF-8")
        first = self._next()
        if first != "{":
            what = "this is not a COCO file: its top level is not a JSON object"
            if first == "[" and '"score"' in self._text[:CHUNK]:
                what = "these are predictions (a list of results with scores), not annotations"
            raise FssError(what, where=self.where,
                           hint="give a COCO file, with the lists images, annotations and categories")
        for _ in self._elements("}"):
            name = self._value()[0]
            self._expect(":")
            self.sections[str(name)] = self._peek() == "["
            if self.sections[str(name)]:
                self._at += 1
                for _ in self._elements("]"):
                    yield JsonRecord(str(name), *self._value())
            else:
                value = self._value()[0]
                self.info = value if name == "info" else self.info
        if self._peek():
            self._fail("more text after its end")

    def again(self, record: JsonRecord) -> Any:
        """The record parsed as UTF-8, for its strings. It works only until the next record is read."""
        first, last = record.start - self._before, record.end - self._before
        try:
            return json.loads(self._text[first:last].encode("latin-1").decode())
        except UnicodeDecodeError as error:
            raise FssError(f"the file is not UTF-8: {error.reason} at byte {record.start + error.start}",
                           where=self.where) from error

    def stamp(self, record: JsonRecord) -> int:
        """64 bits of a hash of the record's text. It works only until the next record is read."""
        text = self._text[record.start - self._before : record.end - self._before].encode("latin-1")
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")

    # ---- the text -------------------------------------------------------------------------------------------------

    def _elements(self, closing: str) -> Iterator[None]:
        """Yield before each element of a list or object, after its opening bracket; read the closing one at the end."""
        if self._peek() == closing:
            self._at += 1
            return
        while True:
            self._peek()
            yield
            mark = self._next()
            if mark == closing:
                return
            if mark != ",":
                self._at -= bool(mark)
                self._fail(f"expecting ',' or '{closing}'")

    def _value(self) -> tuple[Any, int, int]:
        """(value, start, end) of the value that begins here. If it may continue after the chunk, more text is read."""
        count = CHUNK
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except (ValueError, RecursionError) as error:  # ValueError: JSON that is none, or a number of 4300 digits
                deep = isinstance(error, RecursionError)
                if self._ended or deep:
                    what = "nested too deeply" if deep else getattr(error, "msg", "a number is far too long")
                    self._fail(what, getattr(error, "pos", self._at))
            else:
                if end < len(self._text) or self._ended:
                    start, self._at = self._at, end
                    return value, self._before + start, self._before + end
            self._more(count)
            count *= 2

    def _peek(self) -> str:
        """The next character that is not a space, without consuming it; "" at the end of the file."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._more(CHUNK)

    def _next(self) -> str:
        found = self._peek()
        self._at += len(found)
        return found

    def _expect(self, mark: str) -> None:
        if self._peek() != mark:
            self._fail(f"expecting {mark!r}")
        self._at += 1
        self._peek()

    def _more(self, count: int) -> None:
        data = self._file.read(count)
        self._hash.update(data)
        self._ended = not data
        self._text, self._before, self._at = self._text[self._at :] + data.decode("latin-1"), self._before + self._at, 0

    def _fail(self, what: str, at: int | None = None) -> None:
        place = self._before + (self._at if at is None else at)
        raise FssError(f"the file is not valid JSON: {what} at byte {place}", where=self.where)
