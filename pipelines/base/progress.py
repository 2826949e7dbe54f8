"""Progress of long work: a bar with rate and remaining time, or plain lines when the output is not a terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Bar:
    """Progress of one piece of work on standard error. Use as a context manager."""

    def __init__(self, title: str, total: int, *, unit: str = "items", done: int = 0, every_s: float = 15.0) -> None:
        self.title, self.total, self.unit, self.done = title, total, unit, done
        self._first, self._start, self._said, self._every = done, time.monotonic(), 0.0, every_s
        self._rich: Progress | None = None

    def __enter__(self) -> Bar:
        self._start = time.monotonic()
        if sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                       TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
            self._rich = Progress(*columns, console=Console(stderr=True))
            self._task = self._rich.add_task(self.title, total=self.total, completed=self.done, rate="")
            self._rich.start()
        return self

    def step(self, count: int = 1, note: str = "") -> None:
        """Advance by `count` items."""
        self.to(self.done + count, note)

    def to(self, done: int, note: str = "") -> None:
        """Set the number of items done to `done`."""
        self.done = done
        if self._rich:
            rate = f"{self._rate():.1f} {self.unit}/s {note}"
            self._rich.update(self._task, completed=done, total=self.total, rate=rate)
        elif time.monotonic() - self._said >= self._every or done >= self.total:
            self._say(note)

    def _rate(self) -> float:
        return (self.done - self._first) / max(time.monotonic() - self._start, 1e-6)

    def _say(self, note: str) -> None:
        self._said = time.monotonic()
        rate = self._rate()
        left = f", {(self.total - self.done) / rate:.0f} s left" if rate > 0 and self.done < self.total else ""
        print(f"{self.title}: {self.done}/{self.total} {self.unit} ({rate:.1f}/s{left}) {note}".rstrip(),
              file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rich:
            self._rich.stop()


def say(text: str) -> None:
    """Print one line of progress on standard error."""
    print(text, file=sys.stderr, flush=True)
