"""Runs that wait are started on machines that come later."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.sweeps import room
from pipelines.sweeps.machines import machines_of
from pipelines.sweeps.room import ClusterRoom, fitting
from pipelines.sweeps.schedule import Machine, QueuedRun, RunResources, Schedule

NEED = RunResources(cpus=1.0, memory=1.2e9)


class Growing:
    """What a sweep sees of a cluster: a head without CPUs at first, then a small machine beside it."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = [{"NodeID": "head", "Alive": True, "Resources": {"memory": 1e10}}]

    def nodes(self) -> list[dict[str, Any]]:
        return self.found

    def grow(self) -> None:
        self.found.append({"NodeID": "new", "Alive": True, "Resources": {"CPU": 1.0, "memory": 1e9}})


def test_a_machine_that_comes_later_is_used_and_asked_for_until_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory is less than a driver's, which then asks for all of it."""
    monkeypatch.setattr(room, "MACHINES_S", -1.0)
    ray, asked = Growing(), []
    request: Any = SimpleNamespace(ask=lambda bundles: asked.append(list(bundles)))

    def queued(key: str, machines: Sequence[Machine]) -> QueuedRun:
        return QueuedRun(key=key, resources=fitting(NEED, machines), seconds=1.0)

    schedule = Schedule(machines_of(ray))
    schedule.add([queued("base", schedule.machines)])
    cluster = ClusterRoom(schedule, request, ray, queued)
    cluster.look()
    assert schedule.start() == []
    assert asked[-1] == [{"CPU": 1.0, "memory": 1.2e9}]
    ray.grow()
    cluster.look()
    (started,) = schedule.start()
    assert started.resources.memory == 1e9
    cluster.look()
    assert asked[-1] == []
