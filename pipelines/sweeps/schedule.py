"""The scheduler of a sweep: decides which run starts next. It uses neither Ray nor a clock.

Runs that fit on what is free are started, longest first; one that does not fit is passed over. Each run also has a
driver, which takes memory but no CPU: no more runs are under way than there is memory for their drivers. A run's
resources are reserved here for its whole life, over all its placement groups and tasks, and not left to Ray's own
queue: there drivers that wait hold their memory, and the expected end takes this model of the machines anyway.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

SLACK = 1e-6  # tolerance, because shares of a CPU or GPU are decimal fractions
GONE = -1  # index of a machine that was lost


@dataclass(frozen=True, kw_only=True)
class RunResources:
    """CPUs and GPUs of each worker of a run, the number of workers, and the bytes of memory of the run's driver.

    A worker runs on one machine, as does the driver. `gpus` are whole GPUs, or a fraction of a single one.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    workers: int = 1
    memory: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Machine:
    """CPUs and GPUs of a machine, and its bytes of memory for drivers: all of them, or what is free."""

    cpus: float
    gpus: tuple[float, ...] = ()  # the free share of each GPU
    memory: float = math.inf
    node: str = ""  # Ray's id of the machine

    def gpus_for(self, resources: RunResources) -> tuple[int, ...] | None:
        """Indices of the GPUs for one worker of a run: the fullest with room for it; None if it does not fit."""
        if resources.cpus > self.cpus + SLACK:
            return None
        count, share = _gpus(resources)
        able = sorted((free, i) for i, free in enumerate(self.gpus) if free + SLACK >= share) if count else []
        return tuple(i for _, i in able[:count]) if len(able) >= count else None

    def reserve(self, resources: RunResources, gpus: Sequence[int], sign: int = -1) -> Machine:
        """The machine with the resources of one worker taken from `gpus`; with `sign` 1, given back."""
        share = sign * _gpus(resources)[1]
        return replace(self, cpus=self.cpus + sign * resources.cpus,
                       gpus=tuple(g + share if i in gpus else g for i, g in enumerate(self.gpus)))

    def take(self, memory: float) -> Machine:
        """The machine without `memory` bytes, which may be negative: then they are given back."""
        return replace(self, memory=self.memory - memory)


def _gpus(resources: RunResources) -> tuple[int, float]:
    """(number of GPUs of a worker, share of each)."""
    return (round(resources.gpus), 1.0) if resources.gpus >= 1 else (int(resources.gpus > 0), resources.gpus)


@dataclass(frozen=True, kw_only=True)
class QueuedRun:
    """A run that waits, with its resources and expected length."""

    key: str
    resources: RunResources
    seconds: float  # expected length


@dataclass(frozen=True)
class Place:
    """Where a run is: (machine, its GPUs) of each worker, and the machine of the driver, all as indices."""

    workers: tuple[tuple[int, tuple[int, ...]], ...]
    driver: int


def place(machines: list[Machine], resources: RunResources) -> Place | None:
    """Place a run's workers on `machines`, the fullest first, and then its driver; `machines` are changed in place.

    Returns None, with `machines` unchanged, if there is no room. Runs without GPUs are placed on machines without free
    GPUs, if possible. The driver is placed beside the first worker or, if the memory there is taken, where most is
    free.
    """
    before: list[Machine] = list(machines)
    found: list[tuple[int, tuple[int, ...]]] = []
    for _ in range(resources.workers):
        able = [(sum(m.gpus), m.cpus, i, g) for i, m in enumerate(machines) if (g := m.gpus_for(resources)) is not None]
        if not able:
            machines[:] = before
            return None
        _, _, where, gpus = min(able)
        machines[where] = machines[where].reserve(resources, gpus)
        found.append((where, gpus))
    driver = max(range(len(machines)), key=lambda i: (_holds(machines[i], resources) and i == found[0][0],
                                                      machines[i].memory, -i))
    if not _holds(machines[driver], resources):
        machines[:] = before
        return None
    machines[driver] = machines[driver].take(resources.memory)
    return Place(tuple(found), driver)


def _holds(machine: Machine, resources: RunResources) -> bool:
    return machine.memory >= resources.memory


def remove(machines: list[Machine], resources: RunResources, where: Place, sign: int = 1) -> None:
    """Give back what `place` took; with `sign` -1, take it. Machines that are gone are skipped."""
    for i, gpus in where.workers:
        if i != GONE:
            machines[i] = machines[i].reserve(resources, gpus, sign)
    if where.driver != GONE:
        machines[where.driver] = machines[where.driver].take(-sign * resources.memory)


@dataclass
class Schedule:
    """Runs that wait and runs that are under way on some machines; at most `limit` at a time, 0 for no limit."""

    machines: Sequence[Machine]
    limit: int = 0
    waiting: dict[str, QueuedRun] = field(default_factory=dict)
    under_way: dict[str, tuple[QueuedRun, Place]] = field(default_factory=dict)

    def add(self, tasks: Iterable[QueuedRun]) -> None:
        """Add waiting runs."""
        self.waiting |= {t.key: t for t in tasks}

    def find_misfit(self) -> QueuedRun | None:
        """A waiting run that does not fit on the machines even when they are idle; None if all fit."""
        return next((t for t in self.waiting.values() if place(list(self.machines), t.resources) is None), None)

    @property
    def busy(self) -> bool:
        """Whether any run waits or is under way."""
        return bool(self.waiting or self.under_way)

    def ordered(self) -> list[QueuedRun]:
        """The waiting runs, longest first."""
        return sorted(self.waiting.values(), key=lambda task: -task.seconds)

    def start(self) -> list[QueuedRun]:
        """The runs to start now; from now on they count as under way."""
        started = _pick(self.ordered(), self._free(), self._room(len(self.under_way)))
        for task, where in started:
            self.under_way[task.key] = (self.waiting.pop(task.key), where)
        return [task for task, _ in started]

    def wanted(self) -> list[QueuedRun]:
        """The waiting runs that would start if there were machines for all, as many as `limit` allows."""
        return self.ordered()[:self._room(len(self.under_way))]

    def driver_node(self, key: str) -> str:
        """Ray's id of the machine on which the driver of a run that is under way has its memory."""
        driver = self.under_way[key][1].driver
        return self.machines[driver].node if driver != GONE else ""

    def finish(self, key: str) -> QueuedRun:
        """Remove a run that has ended, with success or not; returns it."""
        return self.under_way.pop(key)[0]

    def update_lengths(self, seconds: Mapping[str, float]) -> None:
        """Set the expected lengths of waiting runs, by key."""
        for key in seconds.keys() & self.waiting.keys():
            self.waiting[key] = replace(self.waiting[key], seconds=seconds[key])

    def resize(self, machines: Sequence[Machine]) -> None:
        """Replace the machines after the cluster has grown or shrunk; runs under way keep theirs, known by `node`."""
        index = {m.node: i for i, m in enumerate(machines)}
        moved = {i: index.get(m.node, GONE) for i, m in enumerate(self.machines)} | {GONE: GONE}
        for key, (task, where) in self.under_way.items():
            workers = tuple((moved[i], gpus) for i, gpus in where.workers)
            self.under_way[key] = task, Place(workers, moved[where.driver])
        self.machines = machines

    def seconds_left(self, remaining: Mapping[str, float] | None = None) -> float:
        """Expected seconds until all runs have ended; -1 if that is unknown, because one fits on no machine.

        `remaining` are the seconds left of runs under way, by key; for others their expected length.
        """
        waiting, free, now, left = self.ordered(), self._free(), 0.0, remaining or {}
        ends: list[tuple[float, str, RunResources, Place]] = [
            (left.get(t.key, t.seconds), t.key, t.resources, where) for t, where in self.under_way.values()]
        heapq.heapify(ends)
        while waiting or ends:
            started = _pick(waiting, free, self._room(len(ends)))
            if gone := {t.key for t, _ in started}:
                waiting = [t for t in waiting if t.key not in gone]
            for task, where in started:
                heapq.heappush(ends, (now + task.seconds, task.key, task.resources, where))
            if not ends:
                return -1.0
            now, _, resources, where = heapq.heappop(ends)
            remove(free, resources, where)
        return now

    def _room(self, under_way: int) -> int:
        """How many more runs may be under way."""
        return max(self.limit - under_way, 0) if self.limit else len(self.waiting)

    def _free(self) -> list[Machine]:
        free = list(self.machines)
        for task, where in self.under_way.values():
            remove(free, task.resources, where, -1)
        return free


def _pick(ordered: Sequence[QueuedRun], free: list[Machine], room: int) -> list[tuple[QueuedRun, Place]]:
    """The waiting runs that start now, in order, at most `room`; `free` is changed in place."""
    chosen: list[tuple[QueuedRun, Place]] = []
    hopeless: set[RunResources] = set()
    for task in ordered:
        if len(chosen) >= room:
            break
        where = None if task.resources in hopeless else place(free, task.resources)
        if where is not None:
            chosen.append((task, where))
        else:
            hopeless.add(task.resources)
    return chosen
