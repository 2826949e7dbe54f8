"""Photos whose decoder crashes or never ends: workers that end themselves, and a process that finds the photo.

A decoder's crash takes its process along, and a decoder that hangs may never give Python a turn. So a worker is ended
by `DecodeLimit`, and whoever lost two workers with the same photos asks `stuck_photos` which of them are to blame.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import TypeVar

from fss_models.errors import BadImage
from fss_models.limits import PhotoLimits
from fss_models.photo_files import decode_image

START_S = 60.0  # for the process that decodes to start
Row = TypeVar("Row")


class DecodeLimit:
    """Ends the process, with the stacks of its threads on standard error, when no decoder comes to an end for a while.

    Several threads may decode. The clock starts again whenever one of them begins or ends, and stops when none decodes.
    It is C's, so it also runs out for decoders that hold the interpreter. seconds 0: no limit.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self._running, self._lock = seconds, 0, threading.Lock()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Around one call of a decoder."""
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def _count(self, more: int) -> None:
        if not self.seconds:
            return
        with self._lock:
            self._running += more
            if self._running:
                faulthandler.dump_traceback_later(self.seconds, exit=True, file=2)
            else:
                faulthandler.cancel_dump_traceback_later()


def stuck_photos(photos: Mapping[Row, bytes], limits: PhotoLimits, seconds: float) -> dict[Row, str]:
    """Why photos cannot be decoded: those that crash a process of their own, or take it longer than `seconds`."""
    found: dict[Row, str] = {}
    process: tuple[Connection, multiprocessing.process.BaseProcess] | None = None
    for row, data in photos.items():
        process = process or _start(limits)
        reason = _ask(process[0], data, seconds)
        if reason:
            found[row] = reason
            _stop(*process)
            process = None
    if process:
        _stop(*process)
    return found


def _ask(photos: Connection, data: bytes, seconds: float) -> str:
    try:
        photos.send_bytes(data)
        if not photos.poll(seconds):
            return f"its decoder took longer than {seconds:g} s (data.max_seconds)"
        photos.recv()
        return ""
    except (EOFError, OSError):
        return "its decoder crashes"


def _start(limits: PhotoLimits) -> tuple[Connection, multiprocessing.process.BaseProcess]:
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_decode_all, args=(there, limits), daemon=True)
    process.start()
    there.close()
    if here.poll(START_S):
        here.recv()  # it is ready
    return here, process


def _stop(photos: Connection, process: multiprocessing.process.BaseProcess) -> None:
    photos.close()
    process.kill()
    process.join()


def _decode_all(photos: Connection, limits: PhotoLimits) -> None:
    photos.send(None)
    while True:
        try:
            decode_image(photos.recv_bytes(), limits=limits, exif=True)
        except BadImage:
            pass  # the labeler says why
        except EOFError:
            return
        photos.send(None)
