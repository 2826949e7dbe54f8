"""What is known of workers that died at a part: which photo they were at, so that it fails instead of the build.

A decoder that crashes takes its process with it, and Ray starts the task again, without end. One that hangs would keep
its worker for ever: `time_limit` ends that process too. So each start is noted. From the second start on the worker
notes each photo before it reads it. A photo at which two such workers died is left out.
"""

from __future__ import annotations

import faulthandler
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fss_models.errors import FssError
from pipelines.base.storage import Store

FOLDER = "build/attempts"
DEATHS = 3  # of the workers of a part: the first leaves no name, the next two agree on a photo


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """End this process with status 1, and the stacks of its threads on standard error, if the block takes longer.

    The thread that does so is C's: it also ends decoders that never give Python a turn. One limit at a time a process.
    """
    faulthandler.dump_traceback_later(seconds, exit=True, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@dataclass
class PartAttempts:
    """The starts of one part. careful: whether a worker has died at it; died: position of a photo -> deaths there."""

    store: Store
    part: int
    careful: bool = False
    died: dict[str, int] = field(default_factory=dict)
    elsewhere: int = 0

    @classmethod
    def begin(cls, store: Store, part: int) -> PartAttempts:
        """Note that a worker begins. Raises `FssError` if `DEATHS` died outside of any photo."""
        attempts = cls(store, part)
        if store.exists(attempts._name):
            before: dict[str, Any] = store.read_json(attempts._name)
            attempts.careful, attempts.died, attempts.elsewhere = True, before["died"], before["elsewhere"]
            if before["at"] is None:
                attempts.elsewhere += 1
            else:
                attempts.died[before["at"]] = attempts.died.get(before["at"], 0) + 1
            if attempts.elsewhere >= DEATHS:
                raise FssError(f"{DEATHS} workers died at part {part}, between its photos", where=store.url,
                               hint="they may lack memory: lower data.images_per_part or data.max_pixels")
        attempts._note(None)
        return attempts

    def at(self, place: int) -> bool:
        """Note that the photo at this place of the part is read now. False: it must be left out."""
        if not self.careful:
            return True
        if self.died.get(str(place), 0) >= DEATHS - 1:
            return False
        self._note(str(place))
        return True

    def done(self) -> None:
        """Note that all photos are read."""
        if self.careful:
            self._note(None)

    @property
    def _name(self) -> str:
        return f"{FOLDER}-{self.part:05d}.json"

    def _note(self, at: str | None) -> None:
        self.store.write_json(self._name, {"at": at, "died": self.died, "elsewhere": self.elsewhere})


def forget_attempts(store: Store) -> None:
    """Delete the notes of an earlier build, which a person may have stopped."""
    for name in store.list("build"):
        if name.startswith(f"{FOLDER}-"):
            store.delete(name)
