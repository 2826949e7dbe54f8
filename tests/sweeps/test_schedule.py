"""The scheduler of sweeps on a clock of its own: nothing is overbooked, nothing starves, and packing is tight."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
import pytest

from pipelines.sweeps.machines import bundles_of
from pipelines.sweeps.schedule import SLACK, Machine, Place, QueuedRun, RunResources, Schedule, place


def makespan(tasks: Sequence[QueuedRun], machines: Sequence[Machine], limit: int = 0,
             lengths: dict[str, float] | None = None) -> float:
    """The seconds until all is done; the machines are checked at every step. `lengths`: what runs really take."""
    schedule = Schedule(machines, limit)
    schedule.add(tasks)
    assert schedule.find_misfit() is None
    now, ends, done = 0.0, [], set()
    while schedule.busy:
        for task in schedule.start():
            heapq.heappush(ends, (now + (lengths or {}).get(task.key, task.seconds), task.key))
        check_room(schedule, limit)
        assert ends, "something waits and nothing is under way"
        now, key = heapq.heappop(ends)
        schedule.finish(key)
        done.add(key)
    assert done == {t.key for t in tasks}
    return now


def check_room(schedule: Schedule, limit: int) -> None:
    """No CPU, GPU and memory carries more than it has; a fraction lies on one GPU, a part on one machine."""
    cpus = [0.0] * len(schedule.machines)
    gpus = [[0.0] * len(m.gpus) for m in schedule.machines]
    memory = [0.0] * len(schedule.machines)
    for task, where in schedule.under_way.values():
        assert len(where.workers) == task.resources.workers
        memory[where.driver] += task.resources.memory
        for machine, on in where.workers:
            cpus[machine] += task.resources.cpus
            assert len(on) == (round(task.resources.gpus) if task.resources.gpus >= 1 else int(task.resources.gpus > 0))
            for g in on:
                gpus[machine][g] += min(task.resources.gpus, 1.0)
    assert all(c <= m.cpus + SLACK for c, m in zip(cpus, schedule.machines, strict=True))
    assert all(share <= 1 + SLACK for each in gpus for share in each)
    assert all(b <= m.memory for b, m in zip(memory, schedule.machines, strict=True))
    assert not limit or len(schedule.under_way) <= limit


def tasks_of(seconds: Sequence[float], *needs: RunResources) -> list[QueuedRun]:
    return [QueuedRun(key=str(i), resources=needs[i % len(needs)], seconds=s) for i, s in enumerate(seconds)]


def test_longest_first_fills_two_cores() -> None:
    """In the order of the recipe these would end at 9: 1+1 and then 4+4 beside 5."""
    assert makespan(tasks_of([1, 1, 4, 4, 5, 5], RunResources(cpus=1)), [Machine(cpus=2)]) == 10
    assert makespan(tasks_of([1, 1, 2, 4], RunResources(cpus=1)), [Machine(cpus=2)]) == 4


@pytest.mark.parametrize("seed", range(8))
def test_nothing_is_overbooked_and_all_gets_done(seed: int) -> None:
    """Random runs on random machines, what they really take being far from what was expected."""
    rng = np.random.default_rng(seed)
    machines = [Machine(cpus=float(rng.integers(2, 17)), gpus=(1.0,) * int(rng.integers(2, 9)),
                        memory=float(rng.integers(3, 9))) for _ in range(3)]
    needs = [RunResources(cpus=0.9, memory=3), RunResources(cpus=1, gpus=0.3), RunResources(cpus=1, gpus=1, memory=1),
             RunResources(cpus=0.5, gpus=0.5, workers=2, memory=2), RunResources(cpus=1, gpus=2),
             RunResources(cpus=0.7, workers=2, memory=3)]
    tasks = tasks_of(rng.uniform(1, 100, 60), *needs)
    makespan(tasks, machines, lengths={t.key: float(rng.uniform(1, 100)) for t in tasks})
    makespan(tasks, machines, limit=3)


@pytest.mark.parametrize("runs", [8, 32, 128])
def test_makespan_is_near_the_lower_bound(runs: int) -> None:
    """Lengths as of six methods on eight GPUs' eighth part of the runs; see benchmarks/suite/packing for more."""
    rng = np.random.default_rng(runs)
    lengths = [[60, 90, 240, 400, 700, 900][i % 6] * float(rng.uniform(1, 1.3)) for i in range(runs)]
    gpus = max(2, runs // 16)
    machines = [Machine(cpus=32, gpus=(1.0,) * gpus)]
    got = makespan(tasks_of(lengths, RunResources(cpus=1, gpus=1)), machines)
    assert got <= 1.1 * max(sum(lengths) / gpus, max(lengths))
    shuffled = makespan(tasks_of(lengths[::-1], RunResources(cpus=1, gpus=1)), machines)
    assert shuffled <= 1.1 * max(sum(lengths) / gpus, max(lengths)), "the order given must not matter"


def test_fractions_share_a_gpu_and_only_one() -> None:
    """0.6 + 0.6 is not one GPU and a fifth of another: two at a time on two GPUs, not three."""
    assert makespan(tasks_of([1, 1, 1], RunResources(cpus=0.1, gpus=0.6)), [Machine(cpus=4, gpus=(1.0, 1.0))]) == 2
    assert makespan(tasks_of([1] * 8, RunResources(cpus=0.1, gpus=0.25)), [Machine(cpus=4, gpus=(1.0, 1.0))]) == 1


def test_runs_without_gpus_leave_gpu_machines_alone() -> None:
    machines = [Machine(cpus=4, gpus=(1.0,)), Machine(cpus=4)]
    assert place(machines, RunResources(cpus=2)) == Place(((1, ()),), driver=1)


def test_what_fits_nowhere_is_known_beforehand() -> None:
    """Three CPUs on two machines of two are not one run of three."""
    schedule = Schedule([Machine(cpus=2), Machine(cpus=2)])
    schedule.add(tasks_of([1.0], RunResources(cpus=3)))
    assert schedule.find_misfit() is not None
    assert schedule.start() == []
    spread = Schedule([Machine(cpus=2), Machine(cpus=2)])
    spread.add(tasks_of([1.0], RunResources(cpus=1.5, workers=2)))
    assert spread.find_misfit() is None


def test_better_estimates_change_the_order() -> None:
    schedule = Schedule([Machine(cpus=1)])
    schedule.add(tasks_of([5, 3, 1], RunResources(cpus=1)))
    assert [t.key for t in schedule.start()] == ["0"]
    schedule.update_lengths({"2": 50.0, "0": 1.0})
    schedule.finish("0")
    assert [t.key for t in schedule.start()] == ["2"]


def test_a_cluster_that_grows_or_shrinks_is_used_as_it_is() -> None:
    schedule = Schedule([Machine(cpus=1), Machine(cpus=1)])
    schedule.add(tasks_of([5, 5, 5, 5], RunResources(cpus=1)))
    assert len(schedule.start()) == 2
    schedule.resize([Machine(cpus=1)])
    schedule.finish("0")
    schedule.finish("1")
    assert len(schedule.start()) == 1
    schedule.resize([Machine(cpus=2), Machine(cpus=2)])
    assert len(schedule.start()) == 1
    assert schedule.waiting == {}


def test_a_run_keeps_its_machine_when_another_is_lost() -> None:
    """Would catch machines known by their place in the list, which changes with every machine that is lost."""
    a, b, c = (Machine(cpus=2, node=name) for name in "abc")
    schedule = Schedule([a, b])
    schedule.add(tasks_of([5, 5], RunResources(cpus=2)))
    schedule.start()
    assert [schedule.driver_node(k) for k in "01"] == ["a", "b"]
    schedule.resize([c, b])
    schedule.add([QueuedRun(key="2", resources=RunResources(cpus=2), seconds=1.0)])
    assert [t.key for t in schedule.start()] == ["2"]
    assert [schedule.driver_node(k) for k in "012"] == ["", "b", "c"]
    schedule.finish("0")
    schedule.finish("2")
    assert schedule.seconds_left({"1": 3.0}) == 3


def test_what_is_wanted_is_bounded_by_the_limit() -> None:
    schedule = Schedule([Machine(cpus=1)], limit=3)
    schedule.add(tasks_of([1, 4, 3, 2, 5], RunResources(cpus=1, gpus=0, memory=7, workers=1)))
    schedule.start()
    assert [t.key for t in schedule.wanted()] == ["1", "2"]
    assert bundles_of(schedule.wanted()) == [{"CPU": 1, "memory": 7}] * 2
    two = QueuedRun(key="two", resources=RunResources(cpus=0.5, gpus=1, workers=2, memory=7), seconds=1.0)
    assert bundles_of([two]) == [{"CPU": 0.5, "GPU": 1, "memory": 7}, {"CPU": 0.5, "GPU": 1}]


def test_time_left_is_unknown_without_a_machine() -> None:
    schedule = Schedule([])
    schedule.add(tasks_of([4], RunResources(cpus=1)))
    assert schedule.start() == []
    assert schedule.seconds_left() == -1


def test_time_left_counts_what_waits_behind() -> None:
    schedule = Schedule([Machine(cpus=2)])
    schedule.add(tasks_of([4, 4, 4], RunResources(cpus=1)))
    assert schedule.seconds_left() == 8
    schedule.start()
    assert schedule.seconds_left({"0": 1.0, "1": 3.0}) == 5


def test_as_many_drivers_as_there_is_memory() -> None:
    """Sixteen CPUs for runs of one CPU, but memory for five drivers: four on one machine and one on the other."""
    machines = [Machine(cpus=8, memory=4.9), Machine(cpus=8, memory=1.5)]
    schedule = Schedule(machines)
    schedule.add(tasks_of([1.0] * 12, RunResources(cpus=1, memory=1.2)))
    assert len(schedule.start()) == 5
    assert sorted(where.driver for _, where in schedule.under_way.values()) == [0, 0, 0, 0, 1]
    assert makespan(tasks_of([1.0] * 12, RunResources(cpus=1, memory=1.2)), machines) == 3


def test_a_driver_is_beside_its_worker_while_there_is_memory() -> None:
    """The machine without memory for drivers is a head without CPUs, or a full one."""
    machines = [Machine(cpus=0, memory=0, node="head"), Machine(cpus=2, memory=2, node="a"),
                Machine(cpus=4, memory=9, node="b")]
    schedule = Schedule(machines)
    schedule.add(tasks_of([3, 2, 1], RunResources(cpus=1, memory=1.5)))
    schedule.start()
    assert [schedule.driver_node(k) for k in "012"] == ["a", "b", "b"]
    assert [where.workers[0][0] for _, where in schedule.under_way.values()] == [1, 1, 2]
    schedule.finish("0")
    schedule.add([QueuedRun(key="3", resources=RunResources(cpus=1, memory=1.5), seconds=1.0)])
    schedule.start()
    assert schedule.driver_node("3") == "a", "memory that a run gave back is used again"


def test_a_run_without_memory_for_its_driver_waits() -> None:
    schedule = Schedule([Machine(cpus=4, memory=1.0)])
    schedule.add(tasks_of([1.0], RunResources(cpus=1, memory=2.0)))
    assert schedule.start() == []
    schedule.resize([Machine(cpus=4, memory=2.0)])
    assert len(schedule.start()) == 1
    assert schedule.machines[0].memory == 2.0
