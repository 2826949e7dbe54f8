"""The exception for mistakes that the user can correct: what is wrong, where, and how to correct it, in one line."""

from __future__ import annotations

import copyreg
from typing import Any


class FssError(Exception):
    """A mistake that the user can correct. `fss` prints it as one line and exits with status 2."""

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        self.what, self.where, self.hint = what, where, hint
        line = what if not where else f"{where}: {what}"
        super().__init__(" ".join(f"{line}{f' ({hint})' if hint else ''}".split()))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled with its line and its attributes, whatever the arguments of its class are."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class BadImage(FssError):  # noqa: N818 - reads as what it is
    """An image that cannot or must not be decoded; `reason` is the row in `failures.parquet`."""

    def __init__(self, reason: str, *, where: str = "") -> None:
        super().__init__(reason, where=where)
        self.reason = reason
