"""One sweep, search or pretraining at a time in a workspace: who owns it, whether that process lives, how to stop it.

A local workspace is protected by a file lock, which the kernel releases when a process is killed. In a bucket a
conditional write, which one process wins, creates the heartbeat of the owner or replaces that of one that is gone; the
owner writes it every few seconds. In both places it is `sweep/owner.json`, which names the owner.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from fss_models.errors import FssError
from pipelines.base.conditional import check_conditional_writes, create, etag, replace
from pipelines.base.storage import Store, json_bytes

OWNER, CANCEL = "sweep/owner.json", "sweep/cancel.json"
BEAT_S = 4.0  # seconds between two heartbeats
PATIENCE = 3  # missing heartbeats after which an owner on another machine counts as gone


class Owner:
    """Ownership of a workspace by this process. A thread writes heartbeats and looks for a cancellation."""

    def __init__(self, workspace: str) -> None:
        me = psutil.Process()
        self.about: dict[str, Any] = {"id": uuid.uuid4().hex, "host": socket.gethostname(), "pid": me.pid,
                                      "born": me.create_time(), "beat": 0, "time": time.time()}
        self.store, self.ended = Store(workspace), ""
        self._tag: str | None = None  # ETag of the last heartbeat in a bucket
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)

    def claim(self) -> bool:
        """Write the first heartbeat, in a bucket only where there is no owner or it is gone.

        Returns whether it was written. Raises `FssError` for a bucket without conditional writes.
        """
        if self.store.is_local:
            self.store.write_json(OWNER, self._next())
            return True
        check_conditional_writes(self.store, OWNER)
        tag = etag(self.store, OWNER)
        if tag is None:
            self._tag = create(self.store, OWNER, json_bytes(self._next()))
        elif not is_alive(self.store, watch=True):
            self._tag = replace(self.store, OWNER, json_bytes(self._next()), tag)
        return self._tag is not None

    def begin(self) -> None:
        """Start the thread."""
        self._thread.start()

    def end(self) -> None:
        """Stop the thread and give up the ownership."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=BEAT_S)
        with suppress(FssError):  # an owner.json that stays there has no further heartbeats
            if self._is_mine():
                self.store.delete(CANCEL)
                self.store.delete(OWNER)

    @property
    def waits(self) -> bool:
        """Whether the thread still waits for the storage."""
        return self._thread.is_alive()

    def _next(self) -> dict[str, Any]:
        self.about |= {"beat": self.about["beat"] + 1, "time": time.time()}
        return self.about

    def _is_mine(self) -> bool:
        return bool(_read(self.store, OWNER).get("id") == self.about["id"])

    def _beat(self) -> bool:
        """Write the next heartbeat. Returns False if another process has taken over the workspace."""
        if self._tag is None:
            mine = self._is_mine()
            if mine:
                self.store.write_json(OWNER, self._next())
            return mine
        written = replace(self.store, OWNER, json_bytes(self._next()), self._tag)
        self._tag = written or etag(self.store, OWNER) or self._tag  # an earlier heartbeat may be there after all
        return bool(written) or self._is_mine()

    def _live(self) -> None:
        while not self._stop.wait(BEAT_S / 2):
            with suppress(FssError):  # a storage outage of a minute does not end a sweep
                if _read(self.store, CANCEL).get("id") == self.about["id"]:
                    self.ended = "cancelled"
                elif not self._beat():
                    self.ended = "another sweep has taken over this workspace"
            if self.ended:
                if not self._stop.is_set():  # an answer that came late finds a sweep that has ended itself
                    os.kill(os.getpid(), signal.SIGUSR1)  # wakes the main thread wherever it waits
                return


@contextmanager
def own_workspace(workspace: str) -> Iterator[Owner]:
    """Own the workspace while a sweep, search or pretraining runs; only from the main thread.

    A cancellation raises `KeyboardInterrupt` there, with the reason in the owner's `ended`. Raises `FssError` naming
    the owner if another one is under way.
    """
    store, owner = Store(workspace), Owner(workspace)
    with _exclusive(store, wait_s=0.2) as free:  # `is_alive` takes the lock for a moment
        if not (free and owner.claim()):
            raise _refusal(store)
        before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
        try:
            store.delete(CANCEL)
            owner.begin()
            yield owner
        finally:
            owner.end()
            signal.signal(signal.SIGUSR1, signal.SIG_IGN if owner.waits else before)


def _refusal(store: Store) -> FssError:
    about = _read(store, OWNER)
    who = f" (process {about['pid']} on {about['host']})" if about else ""
    return FssError(f"a sweep, search or pretraining is under way here{who}", where=store.url,
                    hint="see `fss sweep status`, stop it with `fss sweep cancel`, or use another --out")


@contextmanager
def _exclusive(store: Store, wait_s: float = 0.0) -> Iterator[bool]:
    """Lock a local workspace; yields whether the lock was free. A bucket has no lock and always yields True."""
    if not store.is_local:
        yield True
        return
    path = Path(store.url) / "sweep" / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    with suppress(Timeout):
        lock.acquire(timeout=wait_s)
    try:
        yield lock.is_locked
    finally:
        lock.release()


def is_alive(store: Store, *, watch: bool = False) -> bool:
    """Whether the process named in owner.json lives.

    An old heartbeat may be due to a wrong clock on the owner's machine: with `watch`, wait for further heartbeats
    before the owner counts as gone. Raises `FssError` where storage fails.
    """
    about = _read(store, OWNER)
    if not about:
        return False
    if store.is_local:
        with _exclusive(store) as free:
            return not free
    if about["host"] == socket.gethostname():
        with suppress(psutil.NoSuchProcess):
            return bool(abs(psutil.Process(about["pid"]).create_time() - about["born"]) < 1)
        return False
    if abs(time.time() - about["time"]) < PATIENCE * BEAT_S:
        return True
    for _ in range(PATIENCE if watch else 0):
        time.sleep(BEAT_S)
        if _read(store, OWNER).get("beat") != about["beat"]:
            return True
    return False


def cancel(workspace: str, *, timeout_s: float = 120.0) -> None:
    """Ask the owner of a workspace to stop, and wait until it has.

    Raises `FssError` if no sweep is under way, or if it does not stop within `timeout_s`.
    """
    store = Store(workspace)
    if not is_alive(store):
        raise FssError("no sweep is under way here", where=store.url, hint="`fss sweep status` shows the last sweep")
    about = _read(store, OWNER)
    store.write_json(CANCEL, {"id": about["id"]})
    deadline = time.monotonic() + timeout_s
    while is_alive(store) and _read(store, OWNER).get("id") in (about["id"], None):
        if time.monotonic() > deadline:
            raise FssError(f"process {about['pid']} on {about['host']} does not stop", where=store.url,
                           hint="end the process there, then run `fss sweep resume`")
        time.sleep(0.5)


def _read(store: Store, name: str) -> dict[str, Any]:
    """Content of a JSON file, {} where there is none. Raises `FssError` for any other failure of storage."""
    try:
        found: dict[str, Any] = store.read_json(name)
    except FssError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return {}
        raise
    return found
