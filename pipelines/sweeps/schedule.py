"""Which run is next: the scheduler of a sweep. It knows no Ray and no clock; the sweep and the benchmark drive it.

Runs of expected lengths are packed into machines. Of a few orders (longest first, largest first, ...) the one whose
simulated end is earliest is kept; whatever fits is started in that order, so nothing idles behind a run that does not
fit, unless waiting for it is what ends earlier.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random

TRIES, TRIES_BY_RUNS = 300, 8000  # plans looked at: so many, and fewer where there are many runs
SLACK = 1e-6  # shares of a CPU or GPU are decimal fractions
Key = Callable[["QueuedRun"], tuple[float, ...]]


@dataclass(frozen=True, kw_only=True)
class RunResources:
    """What a run holds while it is under way: `workers` equal parts, each on one machine.

    `gpus` of a part are whole GPUs, or a fraction of a single one.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    workers: int = 1


@dataclass(frozen=True, kw_only=True)
class Machine:
    """CPUs and GPUs, all of them or those that are free."""

    cpus: float
    gpus: tuple[float, ...] = ()  # the free share of each

    def gpus_for(self, need: RunResources) -> tuple[int, ...] | None:
        """The GPUs that one part of a run would take, the fullest that have room; None if it does not fit."""
        if need.cpus > self.cpus + SLACK:
            return None
        count, share = _gpus(need)
        able = sorted((free, i) for i, free in enumerate(self.gpus) if free + SLACK >= share) if count else []
        return tuple(i for _, i in able[:count]) if len(able) >= count else None

    def less(self, need: RunResources, gpus: Sequence[int], sign: int = -1) -> Machine:
        """What is free when a part is put on some of its GPUs (`sign` 1: taken away again)."""
        share = sign * _gpus(need)[1]
        return replace(self, cpus=self.cpus + sign * need.cpus,
                       gpus=tuple(g + share if i in gpus else g for i, g in enumerate(self.gpus)))


def _gpus(need: RunResources) -> tuple[int, float]:
    """(how many GPUs a part takes, which share of each)."""
    return (round(need.gpus), 1.0) if need.gpus >= 1 else (int(need.gpus > 0), need.gpus)


@dataclass(frozen=True, kw_only=True)
class QueuedRun:
    """A run to be placed."""

    key: str
    need: RunResources
    seconds: float  # expected


Place = tuple[tuple[int, tuple[int, ...]], ...]  # machine and GPUs of each part


def place(machines: list[Machine], need: RunResources) -> Place | None:
    """Put a run's parts into `machines` (changed in place), tightest first; None, nothing changed, if it has no room.

    Runs without GPUs go where no GPU waits for the CPUs, if they can.
    """
    before, found = list(machines), []
    for _ in range(need.workers):
        able = [(sum(m.gpus), m.cpus, i, g) for i, m in enumerate(machines) if (g := m.gpus_for(need)) is not None]
        if not able:
            machines[:] = before
            return None
        _, _, where, gpus = min(able)
        machines[where] = machines[where].less(need, gpus)
        found.append((where, gpus))
    return tuple(found)


def remove(machines: list[Machine], need: RunResources, where: Place) -> None:
    """Give back what `place` took; machines that are gone are passed over."""
    for i, gpus in where:
        if i < len(machines):
            machines[i] = machines[i].less(need, gpus, 1)


# How waiting runs may be ordered; the second value: whether runs behind one that does not fit may start before it.
ORDERS: tuple[tuple[Key, bool], ...] = (
    (lambda t: (-t.seconds,), True),
    (lambda t: (-t.seconds * _size(t.need), -t.seconds), True),
    (lambda t: (-_size(t.need), -t.seconds), True),
    (lambda t: (-_size(t.need), -t.seconds), False),
    (lambda t: (-t.seconds,), False),
)


def _size(need: RunResources) -> float:
    return need.workers * (need.gpus or need.cpus / 1000)


@dataclass(frozen=True)
class _Order:
    """In which order waiting runs are looked at, and whether those behind one that has no room may pass it."""

    keys: tuple[str, ...]
    pass_by: bool


@dataclass
class Schedule:
    """Runs that wait and runs under way on some machines; at most `limit` at a time where it is given."""

    machines: Sequence[Machine]
    limit: int = 0
    waiting: dict[str, QueuedRun] = field(default_factory=dict)
    under_way: dict[str, tuple[QueuedRun, Place]] = field(default_factory=dict)
    _order: _Order | None = None

    def add(self, tasks: Iterable[QueuedRun]) -> None:
        """Runs to do."""
        self.waiting |= {t.key: t for t in tasks}
        self._order = None

    def misfit(self) -> QueuedRun | None:
        """A waiting run that the machines have no room for even when they are idle."""
        return next((t for t in self.waiting.values() if place(list(self.machines), t.need) is None), None)

    @property
    def busy(self) -> bool:
        """Whether anything waits or is under way."""
        return bool(self.waiting or self.under_way)

    def start(self) -> list[QueuedRun]:
        """The runs to start now; they count as under way from here on."""
        order, count = self._planned(), len(self.under_way)
        ordered = [self.waiting[k] for k in order.keys if k in self.waiting]
        room = self.limit - count if self.limit else len(ordered)
        started = _pick(ordered, self._free(), order.pass_by, room)
        for task, where in started:
            self.under_way[task.key] = (self.waiting.pop(task.key), where)
        return [task for task, _ in started]

    def finish(self, key: str) -> QueuedRun:
        """A run has ended, well or not; its place is free."""
        return self.under_way.pop(key)[0]

    def expect(self, seconds: Mapping[str, float]) -> None:
        """Better estimates of some runs' lengths."""
        for key in seconds.keys() & self.waiting.keys():
            self.waiting[key] = replace(self.waiting[key], seconds=seconds[key])
        self._order = None

    def resize(self, machines: Sequence[Machine]) -> None:
        """The cluster has grown or shrunk."""
        if tuple(machines) != tuple(self.machines):
            self.machines, self._order = machines, None

    def left(self, remaining: Mapping[str, float] | None = None) -> float:
        """Seconds until all is done; `remaining` are those of the runs under way, by default their expected lengths."""
        return self._simulate(self._planned(), remaining or {})

    def _free(self) -> list[Machine]:
        free = list(self.machines)
        for task, where in self.under_way.values():
            for i, gpus in where:
                if i < len(free):
                    free[i] = free[i].less(task.need, gpus)
        return free

    def _planned(self) -> _Order:
        if self._order is None:
            self._order = self._better(self._best())
        return self._order

    def _best(self) -> _Order:
        """The best of the simple orders."""
        plans = [_Order(tuple(t.key for t in sorted(self.waiting.values(), key=k)), p) for k, p in ORDERS]
        same = len({(t.need, t.seconds) for t in self.waiting.values()}) < 2
        return plans[0] if same else min(plans, key=lambda plan: self._simulate(plan, {}))

    def _better(self, plan: _Order) -> _Order:
        """Exchange runs at random while the end is later than it could be at best; the same draws every time."""
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
        """No plan ends earlier: the longest run, and all work spread evenly over all CPUs or GPUs."""
        tasks = [*self.waiting.values(), *(t for t, _ in self.under_way.values())]
        have = {"cpus": sum(m.cpus for m in self.machines), "gpus": float(sum(len(m.gpus) for m in self.machines))}
        even: list[float] = [sum(t.seconds * t.need.workers * getattr(t.need, kind) for t in tasks) / amount for kind,
                             amount in have.items() if amount]
        return max([0.0, *even, *(t.seconds for t in tasks)])

    def _simulate(self, order: _Order, remaining: Mapping[str, float]) -> float:
        """When the last run would end, all lengths being as expected."""
        waiting, free, now = [self.waiting[k] for k in order.keys if k in self.waiting], self._free(), 0.0
        ends: list[tuple[float, str, RunResources, Place]] = [
            (remaining.get(t.key, t.seconds), t.key, t.need, where) for t, where in self.under_way.values()]
        heapq.heapify(ends)
        while waiting or ends:
            started = _pick(waiting, free, order.pass_by, self.limit - len(ends) if self.limit else len(waiting))
            if gone := {t.key for t, _ in started}:
                waiting = [t for t in waiting if t.key not in gone]
            for task, where in started:
                heapq.heappush(ends, (now + task.seconds, task.key, task.need, where))
            if not ends:
                return float("inf")  # nothing of what waits has room
            now, _, need, where = heapq.heappop(ends)
            remove(free, need, where)
        return now


def _pick(ordered: Sequence[QueuedRun], free: list[Machine], pass_by: bool, room: int) -> list[tuple[QueuedRun, Place]]:
    """Those of the waiting runs that start now, in order; `free` is changed."""
    chosen: list[tuple[QueuedRun, Place]] = []
    hopeless: set[RunResources] = set()
    for task in ordered:
        if len(chosen) >= room:
            break
        where = None if task.need in hopeless else place(free, task.need)
        if where is not None:
            chosen.append((task, where))
        elif not pass_by:
            break
        else:
            hopeless.add(task.need)
    return chosen

