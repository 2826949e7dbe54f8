"""Reads pickles of plain values without `pickle`: a small interpreter of dicts, lists, tuples, strings and numbers.

It refuses every instruction by which a pickle can name or call code (GLOBAL, REDUCE, BUILD, INST, NEWOBJ, persistent
ids, extension codes), so a list file from an untrusted source cannot execute anything.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from fss_models.errors import FssError

_CODE = {b"c": "GLOBAL", b"\x93": "STACK_GLOBAL", b"R": "REDUCE", b"b": "BUILD", b"i": "INST", b"o": "OBJ",
         b"\x81": "NEWOBJ", b"\x92": "NEWOBJ_EX", b"P": "PERSID", b"Q": "BINPERSID", b"\x82": "EXT1", b"\x83": "EXT2",
         b"\x84": "EXT4", b"\x97": "NEXT_BUFFER"}
_MARK = object()
_RUN = 64  # floats that are read at a time


def read_plain(data: bytes, *, where: str = "") -> Any:
    """The value of a pickle (protocols 2 to 5) of dicts, lists, tuples, strings, bytes, numbers, booleans and None.

    Raises `FssError` for one that names or calls code, that holds anything else, or that is cut short.
    """
    try:
        return _Machine(data).run()
    except _RefusedError as error:
        raise FssError(f"this pickle has {error}, and only pickles of plain values are read", where=where,
                       hint="save it as JSON instead") from None
    except (IndexError, struct.error, UnicodeDecodeError, KeyError, TypeError) as error:
        raise FssError(f"this file is not a complete pickle of plain values ({type(error).__name__})",
                       where=where) from error


class _RefusedError(Exception):
    """An instruction of the pickle that is refused; the message is its name."""


class _Machine:
    """Interprets one pickle: its stack, with marks on it, and its memo."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        while True:
            code = self._take(1)
            if code == b".":
                return self._stack.pop()
            step = _STEPS.get(code)
            if step is None:
                raise _RefusedError(_CODE.get(code, f"the instruction {code!r}"))
            step(self)

    def _take(self, count: int) -> bytes:
        found = self._data[self._at : self._at + count]
        if len(found) < count or count < 0:
            raise IndexError("the end")
        self._at += count
        return found

    def number(self, form: str) -> Any:
        """Read the next number, in the format `form` of `struct`."""
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def push(self, value: Any) -> None:
        """Push a value on the stack."""
        self._stack.append(value)

    def pop(self) -> Any:
        """Pop the top of the stack."""
        return self._stack.pop()

    def above_mark(self) -> list[Any]:
        """Pop everything above the last mark, and the mark itself."""
        at = len(self._stack) - 1
        while self._stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise IndexError("no mark")
        found = self._stack[at + 1 :]
        del self._stack[at:]
        return found

    def floats(self) -> None:
        """Push this float and the floats directly after it, because polygons are long runs of floats."""
        first = self._at - 1
        heads = self._data[first : first + _RUN * 9 : 9]
        count = min(len(heads) - len(heads.lstrip(b"G")), (len(self._data) - first) // 9)
        self._stack += struct.unpack_from(">" + "xd" * max(count, 1), self._data, first)
        self._at = first + 9 * count

    def text(self, form: str, encoding: str) -> None:
        """Push a string that is preceded by its length."""
        self.push(self._take(self.number(form)).decode(encoding, "surrogatepass" if encoding == "utf-8" else "strict"))

    def raw(self, form: str) -> None:
        """Push bytes that are preceded by their length."""
        self.push(self._take(self.number(form)))

    def integer(self, form: str) -> None:
        """Push a long little-endian integer that is preceded by its length in bytes."""
        self.push(int.from_bytes(self._take(self.number(form)), "little", signed=True))

    def remember(self, key: int) -> None:
        """Store the top of the stack in the memo under `key`."""
        self._memo[key] = self._stack[-1]

    def memoize(self) -> None:
        """Store the top of the stack in the memo under the next free number."""
        self._memo[len(self._memo)] = self._stack[-1]

    def recall(self, key: int) -> None:
        """Push the memo's value of `key`."""
        self.push(self._memo[key])

    def extend(self) -> None:
        """Move everything above the mark into the list below it."""
        items = self.above_mark()
        _expect_type(list, self._stack[-1]).extend(items)

    def append(self) -> None:
        """Move the top of the stack into the list below it."""
        item = self.pop()
        _expect_type(list, self._stack[-1]).append(item)

    def set_items(self) -> None:
        """Move the keys and values above the mark into the dict below it."""
        items = self.above_mark()
        _expect_type(dict, self._stack[-1]).update(zip(items[::2], items[1::2], strict=True))

    def set_item(self) -> None:
        """Move one key and value into the dict below them."""
        value, key = self.pop(), self.pop()
        _expect_type(dict, self._stack[-1])[key] = value

    def pack(self, count: int) -> None:
        """Replace the `count` top values by a tuple of them."""
        values = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(values)))


def _expect_type(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError(f"a {kind.__name__} was expected")
    return value


_STEPS: dict[bytes, Callable[[_Machine], Any]] = {
    b"\x80": lambda m: m.number("<B"), b"\x95": lambda m: m.number("<Q"),  # PROTO, FRAME
    b"(": lambda m: m.push(_MARK), b"0": lambda m: m.pop(),
    b"}": lambda m: m.push({}), b"]": lambda m: m.push([]), b")": lambda m: m.push(()),
    b"d": lambda m: m.push(dict(zip(*[iter(m.above_mark())] * 2, strict=True))),
    b"l": lambda m: m.push(m.above_mark()), b"t": lambda m: m.push(tuple(m.above_mark())),
    b"\x85": lambda m: m.pack(1), b"\x86": lambda m: m.pack(2), b"\x87": lambda m: m.pack(3),
    b"N": lambda m: m.push(None), b"\x88": lambda m: m.push(True), b"\x89": lambda m: m.push(False),
    b"J": lambda m: m.push(m.number("<i")), b"K": lambda m: m.push(m.number("<B")),
    b"M": lambda m: m.push(m.number("<H")), b"G": lambda m: m.floats(),
    b"\x8a": lambda m: m.integer("<B"), b"\x8b": lambda m: m.integer("<i"),
    b"X": lambda m: m.text("<I", "utf-8"), b"\x8c": lambda m: m.text("<B", "utf-8"),
    b"\x8d": lambda m: m.text("<Q", "utf-8"),
    b"U": lambda m: m.text("<B", "latin-1"), b"T": lambda m: m.text("<i", "latin-1"),
    b"C": lambda m: m.raw("<B"), b"B": lambda m: m.raw("<I"), b"\x8e": lambda m: m.raw("<Q"),
    b"q": lambda m: m.remember(m.number("<B")), b"r": lambda m: m.remember(m.number("<I")),
    b"\x94": lambda m: m.memoize(), b"h": lambda m: m.recall(m.number("<B")), b"j": lambda m: m.recall(m.number("<I")),
    b"a": lambda m: m.append(), b"e": lambda m: m.extend(), b"s": lambda m: m.set_item(), b"u": lambda m: m.set_items(),
}  # fmt: skip
