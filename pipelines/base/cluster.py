"""One way to reach Ray: the cluster named by RAY_ADDRESS, else a private one that lives as long as the command."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil

from fss_models import allocator
from fss_models.errors import FssError
from pipelines.base.cache import cache_dir

OBJECT_STORE_BYTES = 300_000_000  # image bytes travel, pixels never: a small store is enough on one machine
PRIVATE_TOKEN = "private-"  # how the tokens of private clusters begin: nobody gave them, they open nothing else
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",  # the screen is for our own progress
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what Ray will do by default soon; silences its warning
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_memory_usage_threshold": "0.98",  # small machines run near the limit; 0.95 kills healthy workers
    **allocator.ENVIRONMENT,
}


def prepare_environment() -> None:
    """Set what Ray and others read when they are imported or started. A value the user has set wins."""
    allocator.keep_freed_memory()
    os.environ.setdefault("MPLCONFIGDIR", str(cache_dir("matplotlib")))  # MLflow and the report import matplotlib
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    if not os.environ.get("FSS_RAY_LOGS"):  # Ray prints its warnings on standard output, where `--json` answers
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    if not os.environ.get("RAY_ADDRESS"):  # Ray reads the mode once, when it is imported
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", PRIVATE_TOKEN + secrets.token_hex(32))


def line_of(error: FssError) -> str:
    """The line of an error; of one that comes out of a Ray task or replica without Ray's trace."""
    cause = getattr(error, "cause", None)
    return str(cause if isinstance(cause, FssError) else error)


@contextmanager
def cluster(*, cpus: float | None = None, gpus: float | None = None) -> Iterator[Any]:
    """Yield `ray`, connected. A private cluster is stopped at the end; one named by RAY_ADDRESS is left alone.

    Private clusters use a token of their own that is never written to disk, so two commands at once on one machine
    cannot reach into each other.
    """
    prepare_environment()
    import ray

    if ray.is_initialized():  # nested use inside one process, as in tests
        yield ray
        return
    _connect(ray, cpus, gpus)
    _take_back_sigterm()
    try:
        yield ray
    finally:
        ray.shutdown()


def _take_back_sigterm() -> None:
    """Ray prints a stack trace of its own on SIGTERM before Python hears of it; put Python's handler back."""
    handler = signal.getsignal(signal.SIGTERM)
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _connect(ray: Any, cpus: float | None, gpus: float | None) -> None:
    quiet: dict[str, Any] = {"log_to_driver": bool(os.environ.get("FSS_RAY_LOGS")), "logging_level": logging.ERROR}
    address = os.environ.get("RAY_ADDRESS")
    if address:
        ray.init(address=address, **quiet)
    else:
        _start(ray, num_cpus=cpus, num_gpus=gpus, **quiet)
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def _start(ray: Any, **options: Any) -> None:
    """A private cluster. Ray gives its own processes 30 s; on a busy machine that can be too little, so twice."""
    for last in (False, True):
        before = {p.pid for p in psutil.Process().children()}
        try:
            ray.init(address="local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES,
                     configure_logging=True, **options)
            return
        except Exception as error:  # Ray raises the bare class here
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
            _stop_children(before)
            if last:
                raise FssError("Ray does not start: the machine is too busy", mend="run the command again") from error


def _stop_children(before: set[int]) -> None:
    """What a failed start left behind: it would run on beside the next attempt."""
    left = [p for p in psutil.Process().children() if p.pid not in before]
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=5)
