"""The room that a cluster has for runs: machines that come and go, and what Ray's autoscaler is asked for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from fss_models.errors import FssError
from pipelines.sweeps.machines import MachineRequest, bundles_of, machines_of
from pipelines.sweeps.schedule import Machine, QueuedRun, RunResources, Schedule

MACHINES_S = 10.0  # seconds between two checks of the cluster's machines
PATIENCE_S = 900.0  # seconds that runs wait for an autoscaler while no run is under way


class ClusterRoom:
    """Keeps a schedule in step with the cluster. `queued`: a waiting run, by its key, as it fits on given machines."""

    def __init__(self, schedule: Schedule, request: MachineRequest, ray: Any,
                 queued: Callable[[str, Sequence[Machine]], QueuedRun]) -> None:
        self.schedule, self.request, self.ray, self._queued = schedule, request, ray, queued
        self._looked = self._worked = time.monotonic()

    def look(self) -> None:
        """Take up machines that came or went since the last look, and ask for what the waiting runs lack.

        Raises `FssError` if the autoscaler brings nothing that a run fits on.
        """
        if time.monotonic() - self._looked > MACHINES_S:
            self._looked = time.monotonic()
            self._resize(machines_of(self.ray))
        self._worked = time.monotonic() if self.schedule.under_way else self._worked
        if self.request.ask(bundles_of(self.schedule.wanted())) and time.monotonic() - self._worked > PATIENCE_S:
            check_room(self.schedule, self.ray)

    def _resize(self, machines: list[Machine]) -> None:
        """Tell the schedule if the cluster has grown or shrunk, and what waiting drivers ask for now."""
        if tuple(machines) != tuple(self.schedule.machines):
            self.schedule.resize(machines)
            self.schedule.add([self._queued(key, machines) for key in self.schedule.waiting])


def fitting(resources: RunResources, machines: Sequence[Machine]) -> RunResources:
    """`resources`, but if no machine has as much memory as a driver takes, it asks for all of one, and is alone there.
    """
    most = max((m.memory for m in machines if m.cpus), default=math.inf)
    return replace(resources, memory=min(resources.memory, most))


def check_room(schedule: Schedule, ray: Any) -> None:
    """Raise `FssError` for a run that would wait for ever because the cluster has no room for it, even when idle."""
    task = schedule.find_misfit()
    if task is None:
        return
    have, need = ray.cluster_resources(), task.resources
    for kind, amount in (("CPU", need.cpus * need.workers), ("GPU", need.gpus * need.workers)):
        if amount > have.get(kind, 0.0):
            raise FssError(f"a run needs {amount:g} {kind}, but the cluster has {have.get(kind, 0.0):g}",
                           hint=f"lower sweep.{kind.lower()}s_per_run")
    raise FssError(f"a worker of a run needs {need.cpus:g} CPU and {need.gpus:g} GPU, and no machine has both",
                   hint="lower sweep.cpus_per_run and gpus_per_run, or raise train.workers")


def runs_at_once(schedule: Schedule) -> int:
    """Number of runs that can be under way at the beginning, or, before an autoscaler has brought machines, at all."""
    probe = Schedule(schedule.machines, schedule.limit, dict(schedule.waiting))
    return len(probe.start()) or max(1, len(schedule.wanted()))
