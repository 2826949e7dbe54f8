"""The scheduler of a sweep: decides which run starts next. It uses neither Ray nor a clock.

Runs of expected lengths are packed into machines. Several orders (longest first, largest first, ...) are simulated, and
the one that ends earliest is used. Runs that fit are started in that order; a run that does not fit is passed over,
unless waiting for it ends earlier. Each run also has a driver, which takes memory but no CPU: no more runs are under
way than there is memory for their drivers.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random

TRIES, TRIES_BY_RUNS = 300, 8000  # orders to simulate: at most TRIES, and fewer where there are many runs
SLACK = 1e-6  # tolerance, because shares of a CPU or GPU are decimal fractions
Key = Callable[["QueuedRun"], tuple[float, ...]]


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
        if i < len(machines):
            machines[i] = machines[i].reserve(resources, gpus, sign)
    if where.driver < len(machines):
        machines[where.driver] = machines[where.driver].take(-sign * resources.memory)


# Orders of the waiting runs. The second value: whether runs behind one that does not fit may start before it.
ORDERS: tuple[tuple[Key, bool], ...] = (
    (lambda t: (-t.seconds,), True),
    (lambda t: (-t.seconds * _size(t.resources), -t.seconds), True),
    (lambda t: (-_size(t.resources), -t.seconds), True),
    (lambda t: (-_size(t.resources), -t.seconds), False),
    (lambda t: (-t.seconds,), False),
)


def _size(resources: RunResources) -> float:
    return resources.workers * (resources.gpus or resources.cpus / 1000)


@dataclass(frozen=True)
class _Order:
    """Order of the waiting runs, and whether runs behind one that does not fit may start before it."""

    keys: tuple[str, ...]
    pass_by: bool


@dataclass
class Schedule:
    """Runs that wait and runs that are under way on some machines; at most `limit` at a time, 0 for no limit."""

    machines: Sequence[Machine]
    limit: int = 0
    waiting: dict[str, QueuedRun] = field(default_factory=dict)
    under_way: dict[str, tuple[QueuedRun, Place]] = field(default_factory=dict)
    _order: _Order | None = None

    def add(self, tasks: Iterable[QueuedRun]) -> None:
        """Add waiting runs."""
        self.waiting |= {t.key: t for t in tasks}
        self._order = None

    def find_misfit(self) -> QueuedRun | None:
        """A waiting run that does not fit on the machines even when they are idle; None if all fit."""
        return next((t for t in self.waiting.values() if place(list(self.machines), t.resources) is None), None)

    @property
    def busy(self) -> bool:
        """Whether any run waits or is under way."""
        return bool(self.waiting or self.under_way)

    def start(self) -> list[QueuedRun]:
        """The runs to start now; from now on they count as under way."""
        order, count = self._planned(), len(self.under_way)
        ordered = [self.waiting[k] for k in order.keys if k in self.waiting]
        room = self.limit - count if self.limit else len(ordered)
        started = _pick(ordered, self._free(), order.pass_by, room)
        for task, where in started:
            self.under_way[task.key] = (self.waiting.pop(task.key), where)
        return [task for task, _ in started]

    def driver_node(self, key: str) -> str:
        """Ray's id of the machine on which the driver of a run that is under way has its memory."""
        driver = self.under_way[key][1].driver
        return self.machines[driver].node if driver < len(self.machines) else ""

    def finish(self, key: str) -> QueuedRun:
        """Remove a run that has ended, with success or not; returns it."""
        return self.under_way.pop(key)[0]

    def update_lengths(self, seconds: Mapping[str, float]) -> None:
        """Set the expected lengths of waiting runs, by key."""
        for key in seconds.keys() & self.waiting.keys():
            self.waiting[key] = replace(self.waiting[key], seconds=seconds[key])
        self._order = None

    def resize(self, machines: Sequence[Machine]) -> None:
        """Replace the machines after the cluster has grown or shrunk."""
        if tuple(machines) != tuple(self.machines):
            self.machines, self._order = machines, None

    def seconds_left(self, remaining: Mapping[str, float] | None = None) -> float:
        """Expected seconds until all runs have ended.

        `remaining` are the seconds left of runs under way, by key; for others their expected length.
        """
        return self._simulate(self._planned(), remaining or {})

    def _free(self) -> list[Machine]:
        free = list(self.machines)
        for task, where in self.under_way.values():
            remove(free, task.resources, where, -1)
        return free

    def _planned(self) -> _Order:
        if self._order is None:
            self._order = self._better(self._best())
        return self._order

    def _best(self) -> _Order:
        """The order of `ORDERS` that ends earliest."""
        plans = [_Order(tuple(t.key for t in sorted(self.waiting.values(), key=k)), p) for k, p in ORDERS]
        same = len({(t.resources, t.seconds) for t in self.waiting.values()}) < 2
        return plans[0] if same else min(plans, key=lambda plan: self._simulate(plan, {}))

    def _better(self, plan: _Order) -> _Order:
        """Improve an order by exchanging runs at random (fixed seed) until it cannot end much earlier."""
        ends, floor, draw = self._simulate(plan, {}), self._floor() * 1.01, Random(0)
        for _ in range(min(TRIES, TRIES_BY_RUNS // max(len(plan.keys), 1))):
            if ends <= floor or len(plan.keys) < 3:
                break
            keys = list(plan.keys)
            i, j = draw.sample(range(len(keys)), 2)
            keys[i], keys[j] = keys[j], keys[i]
            other = _Order(tuple(keys), draw.random() < 0.5)
            if (found := self._simulate(other, {})) < ends:
                plan, ends = other, found
        return plan

    def _floor(self) -> float:
        """Lower bound of the end in seconds: the longest run, and all work spread evenly over all CPUs or GPUs."""
        tasks = [*self.waiting.values(), *(t for t, _ in self.under_way.values())]
        have = {"cpus": sum(m.cpus for m in self.machines), "gpus": float(sum(len(m.gpus) for m in self.machines))}
        even: list[float] = [sum(t.seconds * t.resources.workers * getattr(t.resources, kind) for t in tasks) / amount
                             for kind, amount in have.items() if amount]
        return max([0.0, *even, *(t.seconds for t in tasks)])

    def _simulate(self, order: _Order, remaining: Mapping[str, float]) -> float:
        """Seconds until the last run ends, if all lengths are as expected."""
        waiting, free, now = [self.waiting[k] for k in order.keys if k in self.waiting], self._free(), 0.0
        ends: list[tuple[float, str, RunResources, Place]] = [
            (remaining.get(t.key, t.seconds), t.key, t.resources, where) for t, where in self.under_way.values()]
        heapq.heapify(ends)
        while waiting or ends:
            started = _pick(waiting, free, order.pass_by, self.limit - len(ends) if self.limit else len(waiting))
            if gone := {t.key for t, _ in started}:
                waiting = [t for t in waiting if t.key not in gone]
            for task, where in started:
                heapq.heappush(ends, (now + task.seconds, task.key, task.resources, where))
            if not ends:
                return float("inf")  # none of the waiting runs fits
            now, _, resources, where = heapq.heappop(ends)
            remove(free, resources, where)
        return now


def _pick(ordered: Sequence[QueuedRun], free: list[Machine], pass_by: bool, room: int) -> list[tuple[QueuedRun, Place]]:
    """The waiting runs that start now, in order, at most `room`; `free` is changed in place."""
    chosen: list[tuple[QueuedRun, Place]] = []
    hopeless: set[RunResources] = set()
    for task in ordered:
        if len(chosen) >= room:
            break
        where = None if task.resources in hopeless else place(free, task.resources)
        if where is not None:
            chosen.append((task, where))
        elif not pass_by:
            break
        else:
            hopeless.add(task.resources)
    return chosen

