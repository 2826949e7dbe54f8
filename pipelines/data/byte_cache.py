"""A cache bounded in bytes that several threads share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from operator import itemgetter
from typing import Any

from cachetools import LRUCache


class ByteCache:
    """Least recently used values up to `limit` bytes. A value that another thread is computing is waited for."""

    def __init__(self, limit: int) -> None:
        self._kept: LRUCache[Hashable, tuple[Any, int]] = LRUCache(limit, getsizeof=itemgetter(1))
        self._making: dict[Hashable, Future[Any]] = {}
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Bytes of the values in the cache."""
        return int(self._kept.currsize)

    def get(self, key: Hashable, make: Callable[[], tuple[Any, int]]) -> Any:
        """The value of a key. If it is missing, `make` computes it and its size in bytes.

        A value larger than the whole cache is not kept, and one whose computation fails is computed again next time.
        """
        with self._lock:
            made = self._kept.get(key)
            if made is not None:
                return made[0]
            making = self._making.get(key)
            if making is None:
                future = self._making[key] = Future()
        return making.result() if making is not None else self._make(key, make, future)

    def _make(self, key: Hashable, make: Callable[[], tuple[Any, int]], future: Future[Any]) -> Any:
        try:
            value, size = make()
        except BaseException as error:
            with self._lock:
                del self._making[key]
            future.set_exception(error)
            raise
        with self._lock:
            del self._making[key]
            if size <= self._kept.maxsize:
                self._kept[key] = (value, size)
        future.set_result(value)
        return value
