"""Errors on their way through Ray: as values from our own tasks and actors, unwrapped where Ray raises them itself.

Ray puts a raised exception into one of its own, whose text is a stack trace. An `FssError` is for a person to mend, so
work in Ray's workers returns it as an `Outcome`. Serve, Tune and a lost process raise; `error_line` reads those.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from fss_models.errors import FssError

T = TypeVar("T")


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What a call gave: its value, or the `FssError` that it raised, with its class and attributes."""

    value: T | None = None
    error: FssError | None = None

    @classmethod
    def of(cls, call: Callable[..., T], *args: Any) -> Outcome[T]:
        """Call, and keep an `FssError`. Any other exception is raised."""
        try:
            return cls(value=call(*args))
        except FssError as error:
            return cls(error=error)

    def result(self) -> T:
        """The value. Raises the `FssError` of the call."""
        if self.error is not None:
            raise self.error
        return cast(T, self.value)


def unwrapped(error: BaseException) -> BaseException:
    """The exception that a task or a replica raised, without the one that Ray put around it."""
    while isinstance(cause := getattr(error, "cause", None), BaseException):
        error = cause
    return error


def error_line(error: BaseException) -> str:
    """The cause of a failure in one line: the innermost error below those that Ray wrapped around it.

    Of several workers' errors an `FssError` comes first: the other workers failed because they lost that one.
    """
    for worker in sorted(getattr(error, "worker_failures", {}).values(), key=lambda w: not isinstance(w, FssError)):
        return error_line(worker)
    error = unwrapped(error)
    if isinstance(error, FssError):
        return str(error)
    if error.__cause__:
        return error_line(error.__cause__)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[:400]
