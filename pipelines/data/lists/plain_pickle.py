"""Reads pickles of plain values: dicts, lists, tuples, strings, bytes and numbers.

The file is looked through before `pickle` sees it. Every instruction by which a pickle can name or call code (GLOBAL,
REDUCE, BUILD, INST, NEWOBJ, persistent ids, extension codes) is refused, so a list file from an untrusted source
cannot execute anything; and so is a length beyond the file's, for which `pickle` would allocate gigabytes.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
from typing import Any, NoReturn

from fss_models.errors import FssError

_SCALARS = frozenset((
    "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINSTRING",
    "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"))
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "TUPLE": 0}  # 0: everything above the mark
_REMEMBER = frozenset(("BINPUT", "LONG_BINPUT", "MEMOIZE"))
_PLAIN = _SCALARS | _TUPLES.keys() | _REMEMBER | {
    "PROTO", "FRAME", "STOP", "MARK", "POP", "BINGET", "LONG_BINGET", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE",
    "DICT", "LIST", "APPEND", "APPENDS", "SETITEM", "SETITEMS"}
_FLOATS = re.compile(rb"(?:G.{8})*", re.DOTALL)
NESTED = 5000  # tuples that may hold tuples; as a key, one inside the other, 7000 overflow a thread's stack of 512 KiB
_BROKEN = (pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError, OverflowError)


def read_plain(data: bytes, *, where: str = "") -> Any:
    """The value of a pickle (protocols 2 to 5) of dicts, lists, tuples, strings, bytes, numbers, booleans and None.

    Raises `FssError` for one that names or calls code, that holds anything else, or that is cut short.
    """
    try:
        _check(data)
        return _PlainUnpickler(io.BufferedReader(io.BytesIO(data)), encoding="latin-1").load()
    except _RefusedError as error:
        raise FssError(f"this pickle has {error}, and only pickles of plain values are read", where=where,
                       hint="save it as JSON instead") from None
    except _BROKEN as error:
        raise FssError(f"this file is not a complete pickle of plain values ({error})", where=where) from error


class _RefusedError(Exception):
    """What the pickle has that is refused; the message is its name."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> NoReturn:
        raise _RefusedError(f"{module}.{name}")


def _check(data: bytes) -> None:
    """Raise `_RefusedError` for anything but plain values, ValueError for a pickle that is cut short."""
    file = io.BytesIO(data)
    flat, scalars, nested = False, 0, 0  # whether all since the mark are scalars; the last values that are scalars
    for code, value, _ in pickletools.genops(file):
        if code.name not in _PLAIN:
            raise _RefusedError(code.name)
        if code.name in ("FRAME", "LONG_BINPUT") and (value or 0) > len(data):
            raise ValueError(f"{code.name} {value} in {len(data)} bytes")
        if code.name == "BINFLOAT":  # polygons are long runs of floats: one step over each
            second = file.tell()
            file.seek(_FLOATS.match(data, second).end())  # type: ignore[union-attr]
            scalars += 1 + (file.tell() - second) // 9
        elif code.name in _SCALARS:
            scalars += 1
        elif code.name not in _REMEMBER:
            if code.name in _TUPLES:
                nested += not (flat if code.name == "TUPLE" else scalars >= _TUPLES[code.name])
            flat, scalars = code.name == "MARK", 0
    if nested > NESTED:
        raise _RefusedError(f"{nested} tuples of tuples")
