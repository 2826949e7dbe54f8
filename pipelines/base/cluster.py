"""Connection to Ray: to the cluster named by RAY_ADDRESS, else to a private one that ends with the command."""

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
from pipelines.base.code_path import job_config

OBJECT_STORE_BYTES = 300_000_000  # a small store is enough on one machine: encoded images travel, pixels never do
PRIVATE_TOKEN = "private-"  # prefix of private clusters' tokens, which are generated here and open nothing else
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",  # the screen shows our own progress
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's future default; setting it silences a warning
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_memory_usage_threshold": "0.98",  # the default of 0.95 kills healthy workers on small machines
    **allocator.ENVIRONMENT,
}


def prepare_environment() -> None:
    """Set variables that Ray, MLflow and matplotlib read when they are imported. Variables set by the user win."""
    allocator.keep_freed_memory()
    os.environ.setdefault("MPLCONFIGDIR", str(cache_dir("matplotlib")))  # MLflow and the report import matplotlib
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    if not os.environ.get("FSS_RAY_LOGS"):  # Ray prints warnings on standard output, which is for `--json`
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    if not os.environ.get("RAY_ADDRESS"):  # Ray reads these once, when it is imported
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # a process a run; one machine has no notice
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", PRIVATE_TOKEN + secrets.token_hex(32))


@contextmanager
def cluster(*, cpus: float | None = None, gpus: float | None = None) -> Iterator[Any]:
    """Yield `ray`, connected. A private cluster is stopped at the end; one named by RAY_ADDRESS is left running.

    Each private cluster has its own token, which is never written to disk: two commands on one machine cannot reach
    each other's cluster. Raises `FssError` if Ray does not start.
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
    """Put Python's handler of SIGTERM back: Ray's prints a stack trace before Python receives the signal."""
    handler = signal.getsignal(signal.SIGTERM)
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _connect(ray: Any, cpus: float | None, gpus: float | None) -> None:
    quiet: dict[str, Any] = {"log_to_driver": bool(os.environ.get("FSS_RAY_LOGS")), "logging_level": logging.ERROR,
                             "job_config": job_config()}
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
    """Start a private cluster. On a busy machine Ray's 30 s for its own processes can be too short: try twice."""
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
                raise FssError("Ray did not start: the machine is too busy", hint="run the command again") from error


def _stop_children(before: set[int]) -> None:
    """Kill the processes that a failed start left behind: all children except those in `before` (process ids)."""
    left = [p for p in psutil.Process().children() if p.pid not in before]
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=5)
