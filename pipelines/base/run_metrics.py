"""Metrics of a sweep for Prometheus, through Ray: `ray_fss_episodes_per_s` and `ray_fss_runs_ended_total`.

The other metrics of the dashboard (nodes, GPUs, tasks, requests, queues) are exported by Ray itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SPEEDS = ("episodes_per_s", "select/episodes_per_s")
STATUSES = ("FINISHED", "FAILED", "KILLED")


def start_at_zero(counter: Any, **tags: str) -> None:
    """Export a counter of Ray for these tags before it counts: Prometheus sees no increase in one that begins at 1."""
    counter._record(0.0, tags=tags)  # `inc` accepts no 0


class RunMetrics:
    """Exports metrics of runs; does nothing outside a Ray cluster."""

    def __init__(self) -> None:
        import ray

        self._on = ray.is_initialized()
        if self._on:
            from ray.util.metrics import Counter, Gauge

            self._speed = Gauge("fss_episodes_per_s", "Training clips a second, by run.", tag_keys=("run",))
            self._ended = Counter("fss_runs_ended", "Runs that ended, by status.", tag_keys=("status",))
            for status in STATUSES:
                start_at_zero(self._ended, status=status)

    def show(self, run: str, values: Mapping[str, float]) -> None:
        """Export the newest training speed of a run, if `values` has it."""
        for name in SPEEDS if self._on else ():
            if name in values:
                self._speed.set(values[name], tags={"run": run})

    def end(self, run: str, status: str) -> None:
        """Count a run that has ended, and set its speed to 0."""
        if self._on:
            self._speed.set(0.0, tags={"run": run})
            self._ended.inc(tags={"status": status})
