"""What a sweep shows to Prometheus, through Ray: `ray_fss_episodes_per_s` and `ray_fss_runs_ended_total`.

Everything else on the dashboard (nodes, GPUs, tasks, requests, queues) Ray exports itself.
"""

from __future__ import annotations

from collections.abc import Mapping

SPEEDS = ("episodes_per_s", "select/episodes_per_s")


class RunMetrics:
    """Metrics of runs. Outside a Ray cluster nothing is exported."""

    def __init__(self) -> None:
        import ray

        self._on = ray.is_initialized()
        if self._on:
            from ray.util.metrics import Counter, Gauge

            self._speed = Gauge("fss_episodes_per_s", "Training clips a second, by run.", tag_keys=("run",))
            self._ended = Counter("fss_runs_ended", "Runs that ended, by status.", tag_keys=("status",))

    def show(self, run: str, values: Mapping[str, float]) -> None:
        """A run's newest figures."""
        for name in SPEEDS if self._on else ():
            if name in values:
                self._speed.set(values[name], tags={"run": run})

    def end(self, run: str, status: str) -> None:
        """The run trains no more."""
        if self._on:
            self._speed.set(0.0, tags={"run": run})
            self._ended.inc(tags={"status": status})
