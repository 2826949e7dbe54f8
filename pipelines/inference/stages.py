"""Stages of labelling in threads: decoding ahead of the model, run lengths behind it, both bounded by bytes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, TypeVar

from fss_models.clip import Images
from fss_models.errors import BadImage
from pipelines.inference.masks import PhotoFailure

R = TypeVar("R")
T = TypeVar("T")
AHEAD_BYTES = 1 << 30  # of resized photos that wait for the model, of each call
DECODING_BYTES = 2 << 30  # of the pixels of photos that are being decoded
BEHIND_BYTES = 1 << 30  # of logits that wait for their run lengths


class ByteBudget:
    """Lets holders in while their bytes fit together. One that is larger than the limit is let in alone."""

    def __init__(self, limit: int) -> None:
        self.limit, self._held, self._changed = limit, 0, threading.Condition()

    @property
    def free(self) -> int:
        """Bytes that are not held."""
        return self.limit - self._held

    def acquire(self, size: int) -> None:
        """Wait until `size` bytes fit."""
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + size <= self.limit)
            self._held += size

    def release(self, size: int) -> None:
        """Give `size` bytes back."""
        with self._changed:
            self._held -= size
            self._changed.notify_all()

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Hold `size` bytes in a `with` block."""
        self.acquire(size)
        try:
            yield
        finally:
            self.release(size)


class DecodeStage:
    """Prepares photos in threads, each to `size` bytes or fewer."""

    def __init__(self, threads: int, size: int) -> None:
        self._ahead = max(1, AHEAD_BYTES // size)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def batches(self, prepare: Callable[[T], Images], photos: Sequence[T], failures: dict[int, PhotoFailure],
                batch: int) -> Iterator[tuple[list[int], list[Images]]]:
        """Rows and prepared photos (or tiles), `batch` readable ones at a time, in order.

        The others are added to `failures`. `prepare` decodes and resizes a photo; it is not kept, so that a labeler
        that is let go leaves memory at once.
        """
        waiting: deque[tuple[int, Future[Images]]] = deque()
        rows: list[int] = []
        ready: list[Images] = []
        todo = iter(range(len(photos)))
        while True:
            while len(waiting) < min(2 * batch, self._ahead) and (row := next(todo, None)) is not None:
                waiting.append((row, self._pool.submit(prepare, photos[row])))
            if not waiting:
                break
            row, future = waiting.popleft()
            try:
                ready.append(future.result())
                rows.append(row)
            except BadImage as error:
                failures[row] = PhotoFailure(reason=error.reason)
            if len(rows) == batch:
                yield rows, ready
                rows, ready = [], []
        if rows:
            yield rows, ready


class FinishStage(Generic[R]):
    """Runs what follows the model in threads; no thread of it waits for the model."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="finish")
        self._budget = ByteBudget(BEHIND_BYTES)

    def submit(self, size: int, work: Callable[[], R]) -> Future[R]:
        """Start `work`, which keeps `size` bytes until it ends. Waits while too many bytes are kept."""
        self._budget.acquire(size)
        try:
            future = self._pool.submit(work)
        except BaseException:
            self._budget.release(size)
            raise
        future.add_done_callback(lambda _: self._budget.release(size))
        return future
