"""Tracking with MLflow, by one process a sweep. Entries go to a spool on disk first and are sent in order.

A run never waits for the tracking server and never fails with it: entries that cannot be delivered stay in the spool
and are sent by the next command on the same workspace. Each entry has its time, and a step that MLflow already has is
skipped, so sending a spool again after a kill writes nothing twice. A run that a killed command left open is ended as
KILLED by the next command that sends its spool, unless that command continues the run.

The tracking store is MLFLOW_TRACKING_URI, which clusters set. Without it, it is `mlflow.db` (SQLite) in a local
workspace; for an `s3://` workspace it is a local file under FSS_CACHE (default ~/.cache/fss), because SQLite does not
work in an object store. The spool is `spool/` beside it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipelines.base.cache import cache_dir
from pipelines.base.mlflow_sender import Entry, Sender, metric_names
from pipelines.base.progress import say
from pipelines.base.run_metrics import RunMetrics
from pipelines.base.storage import Store

log = logging.getLogger(__name__)
# metric of MLflow -> column of the sweep's table, or figure of a pretraining's progress
SHOWN = {"loss": "loss", "select/loss": "loss", "episodes_per_s": "episodes_per_s", "miou": "miou",
         "select/episodes_per_s": "episodes_per_s", "select/miou": "miou",
         **{f"iou_{kind}": f"iou_{kind}" for kind in ("points", "box", "tracked", "copied")}}


def _home(out: str) -> Path:
    """The local folder with a workspace's MLflow file and spool."""
    store = Store(out)
    if store.is_local:
        return Path(store.url)
    return cache_dir("mlflow", hashlib.sha256(store.url.encode()).hexdigest()[:16])


def tracking_uri(workspace: str, configured: str = "") -> str:
    """URI of the tracking store: `configured` (the recipe's), else MLFLOW_TRACKING_URI, else a SQLite file."""
    return configured or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{_home(workspace) / 'mlflow.db'}"


def spool_folder(workspace: str) -> Path:
    """The folder in which a workspace's entries wait for MLflow."""
    return _home(workspace) / "spool"


@contextmanager
def open_tracker(out: str, experiment: str, ray: Any, *, uri: str = "") -> Iterator[Any]:
    """Yield the tracking actor of a command, on this machine, where the spool of the workspace `out` is.

    `uri` is the recipe's tracking store. Prints a line if entries were not sent.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # Calls that a lost process did not answer are repeated: without its end a run would stay open for ever.
    lasting = {"max_restarts": -1, "max_task_retries": 5}
    actor = ray.remote(Tracker).options(num_cpus=0, scheduling_strategy=here, **lasting).remote(
        tracking_uri(out, uri), experiment, str(spool_folder(out)))
    try:
        yield actor
    finally:
        reason, notes = "the tracking process was lost", []
        with suppress(ray.exceptions.RayError):
            reason, notes = ray.get(actor.close.remote()), ray.get(actor.notes.remote())
        for note in notes:
            say(f"tracking: {note}")
        if reason:
            say(f"tracking: {reason}; the next command sends the entries that wait in {spool_folder(out)}")
        ray.kill(actor)


class Tracker:
    """Writes entries to the spool and sends them to MLflow from a thread. Adding an entry does not wait for MLflow."""

    def __init__(self, uri: str, experiment: str, spool: str) -> None:
        self.uri, self.experiment, self.folder = uri, experiment, Path(spool)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / f"{time.time_ns():020d}-{uuid.uuid4().hex[:6]}.jsonl"
        hidden = self.path.with_suffix(".new")  # other processes may only see the file once it is locked
        self._file = hidden.open("ab")
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        hidden.rename(self.path)
        self._live: dict[str, dict[str, Any]] = {}
        self._used: set[str] = set()  # runs of this process
        self._left: set[str] = set()  # runs that killed processes left open
        self._shown = RunMetrics()
        self._wake, self._stop = threading.Event(), threading.Event()
        self._last_error = ""
        self._sending: Path | None = None
        self._sender = Sender(uri, experiment)
        self._thread = threading.Thread(target=self._send_forever, daemon=True)
        self._thread.start()

    def run(self, key: str, *, parent: str = "", params: Mapping[str, Any] | None = None,
            tags: Mapping[str, Any] | None = None) -> None:
        """Open the MLflow run with the name `key`, or continue it if it exists."""
        self._put({"op": "run", "key": key, "parent": parent, "params": _flat(params or {}), "tags": dict(tags or {})})

    def metrics(self, key: str, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics of one step of a run."""
        clean = dict(zip(metric_names(list(values)), values.values(), strict=True))
        for name, shown in SHOWN.items():
            if name in clean:
                self._live.setdefault(key, {})[shown] = clean[name]
        self._shown.show(key, clean)
        self._put({"op": "metrics", "key": key, "values": clean, "step": step})

    def tags(self, key: str, values: Mapping[str, Any]) -> None:
        """Set tags of a run."""
        self._put({"op": "tags", "key": key, "values": dict(values)})

    def end(self, key: str, status: str = "FINISHED") -> None:
        """End a run; `status` is FINISHED, FAILED or KILLED."""
        self._shown.end(key, status)
        self._put({"op": "end", "key": key, "status": status})

    def artifact(self, key: str, url: str) -> None:
        """Attach a file of the workspace to a run as an artifact. The file is read when the entry is sent."""
        self._put({"op": "artifact", "key": key, "url": url})

    def register(self, model: str, *, source: str, key: str, alias: str, tags: Mapping[str, Any]) -> None:
        """Register a version of a model and set `alias` on it; equal source and tags give the same version."""
        self._put({"op": "register", "model": model, "source": source, "key": key, "alias": alias, "tags": dict(tags)})

    def model(self, model: str, *, key: str, alias: str, tags: Mapping[str, Any], loader: str, data: Any,
              signature: Mapping[str, str]) -> None:
        """Log a model of MLflow's flavour pyfunc and register it: equal tags give the same version.

        `loader` is the module whose `_load_pyfunc` gets a JSON file with `data`; `signature` is a `ModelSignature`'s
        dictionary.
        """
        self._put({"op": "model", "model": model, "key": key, "alias": alias, "tags": dict(tags), "loader": loader,
                   "data": data, "signature": dict(signature)})

    def at_step(self, key: str, step: int, stage: str = "") -> None:
        """Note a run's progress for the table of the sweep; it is not sent to MLflow."""
        live = self._live.setdefault(key, {})
        live |= {"stage": stage, "step": max(step, live.get("step", 0)) if live.get("stage") == stage else step}

    def progress(self) -> dict[str, dict[str, Any]]:
        """Run -> stage, step, and the newest loss, miou and episodes_per_s."""
        return {key: dict(live) for key, live in self._live.items()}

    def close(self, timeout_s: float = 30.0) -> str:
        """Wait until all entries are sent, at most `timeout_s`. Returns "", or the reason why some still wait."""
        deadline = time.monotonic() + timeout_s
        self._drain(deadline)
        for key in self._left - self._used:
            self.end(key, "KILLED")
        self._drain(deadline)
        left = self._waiting()
        self._stop.set()
        self._wake.set()
        self._thread.join(timeout=5)
        self._file.close()
        return f"{self.uri} does not accept entries ({self._last_error or 'it is slow'})" if left else ""

    def _drain(self, deadline: float) -> None:
        while self._waiting() and time.monotonic() < deadline:
            self._wake.set()
            time.sleep(0.05)

    def notes(self) -> list[str]:
        """Lines about what MLflow did not take, for people; none if it took everything."""
        return self._sender.told()

    def _put(self, entry: Entry) -> None:
        self._used.add(entry["key"])
        line = json.dumps({**entry, "t": int(time.time() * 1000)}, default=str).encode() + b"\n"
        self._file.write(line)
        self._file.flush()
        self._wake.set()

    def _waiting(self) -> bool:
        others = (p for p in self._spools() if p != self.path and _unsent(p))
        return _unsent(self.path) or any(p == self._sending or _abandoned(p) for p in others)

    def _spools(self) -> list[Path]:
        return sorted(self.folder.glob("*.jsonl"))

    def _send_forever(self) -> None:
        pause = 0.5
        while not self._stop.is_set():
            try:
                for path in self._spools():
                    self._sending = path
                    self._send(path)
                self._sending = None
                pause = 0.5
            except Exception as error:  # an error of the server does not stop the run
                self._last_error = (str(error).splitlines() or [type(error).__name__])[0][:200]
                pause = min(pause * 2, 15.0)
                self._stop.wait(pause)
            self._wake.wait(timeout=2.0)
            self._wake.clear()

    def _send(self, path: Path) -> None:
        """Send the entries of one spool file in order; a file whose writer is gone is deleted afterwards."""
        with _claim(path, own=path == self.path) as claimed:
            if not claimed:
                return
            for entry, end in _entries(path, _offset(path)):
                self._sender.deliver(entry)
                _write_offset(path, end)
                if self._stop.is_set():
                    return
            if path != self.path:
                self._left |= _open_runs(path)
                path.unlink(missing_ok=True)
                _offset_path(path).unlink(missing_ok=True)


def _abandoned(path: Path) -> bool:
    with _claim(path, own=False) as claimed:
        return claimed


@contextmanager
def _claim(path: Path, *, own: bool) -> Iterator[bool]:
    """Whether this process may send a spool file: its own, or one whose writer is gone."""
    if own:
        yield True
        return
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield True
    except OSError:
        yield False


def _offset_path(path: Path) -> Path:
    return path.with_suffix(".sent")


def _offset(path: Path) -> int:
    with suppress(OSError, ValueError):
        return int(_offset_path(path).read_text())
    return 0


def _write_offset(path: Path, end: int) -> None:
    part = path.with_suffix(".part")
    part.write_text(str(end))
    part.replace(_offset_path(path))


def _unsent(path: Path) -> bool:
    with suppress(OSError):
        return path.stat().st_size > _offset(path)
    return False


def _entries(path: Path, offset: int) -> Iterator[tuple[Entry, int]]:
    """(entry, offset after it) of each complete line from `offset` on; an incomplete last line is left for later."""
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield json.loads(line), offset


def _open_runs(path: Path) -> set[str]:
    """The runs that a spool file opens and does not end."""
    found: set[str] = set()
    for entry, _ in _entries(path, 0):
        if entry["op"] == "run":
            found.add(entry["key"])
        elif entry["op"] == "end":
            found.discard(entry["key"])
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as MLflow parameters with dotted names, such as `train.lr`."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = str(value)[:500]
    return flat
