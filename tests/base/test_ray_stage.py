"""Work in Ray's workers, on a real cluster: errors as values, the order of results, workers that die."""

from __future__ import annotations

import os
import pickle
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fss_models.errors import FssError
from pipelines.base.outcome import Outcome, error_line, unwrapped
from pipelines.base.ray_stage import run_actors, run_task, run_tasks


class OddError(FssError):
    """An error whose class takes other arguments than `FssError`, and whose attributes a caller needs."""

    def __init__(self, status: int, *, place: str) -> None:
        super().__init__("is odd", where=place, hint="make it even")
        self.status = status


def even(number: int) -> int:
    if number % 2:
        raise OddError(number, place=f"number {number}")
    return number


def broken(number: int) -> int:
    raise ValueError(f"{number} is not foreseen")


class Broken:
    """An actor's way to the same error."""

    def __call__(self, number: int) -> int:
        return broken(number)


class Counter:
    """Counts its own calls."""

    def __init__(self, first: int) -> None:
        self._calls = even(first)

    def __call__(self, number: int) -> tuple[int, int, int]:
        self._calls += 1
        return even(number), self._calls, os.getpid()


class DiesOnce:
    """Writes a file for each item; the first process that comes to a certain item dies in it."""

    def __init__(self, folder: Path, at: int) -> None:
        self._folder, self._at = folder, at

    def __call__(self, number: int) -> int:
        tried = self._folder / f"tried-{number}"
        if number == self._at and not tried.exists():
            tried.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number


class Waits:
    """The first call of all returns at once; every other one waits for a file. Ray Data's actors keep no order."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, number: int) -> int:
        try:
            (self._folder / "first").touch(exist_ok=False)
        except FileExistsError:
            limit = time.monotonic() + 60
            while not (self._folder / "go-on").exists():
                assert time.monotonic() < limit
                time.sleep(0.05)
        return number


def odd_error(found: pytest.ExceptionInfo[OddError]) -> tuple[str, int, str, str]:
    assert type(found.value) is OddError
    return str(found.value), found.value.status, found.value.where, found.value.hint


ODD = ("number 7: is odd (make it even)", 7, "number 7", "make it even")


WAYS: dict[str, Callable[[Any], object]] = {
    "task": lambda ray: run_task(ray, even, 7, cpus=0),
    "tasks": lambda ray: list(run_tasks(ray, even, [2, 7])),
    "actors": lambda ray: list(run_actors(ray, partial(Counter, 0), [2, 7], actors=1)),
    "constructor": lambda ray: list(run_actors(ray, partial(Counter, 7), [2], actors=1)),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_mistake_comes_back_as_it_was_raised(way: str, ray_cluster: Any) -> None:
    """With its class and attributes, and without Ray's trace around it."""
    with pytest.raises(OddError) as found:
        WAYS[way](ray_cluster)
    assert odd_error(found) == ODD


def test_an_unforeseen_error_is_raised_by_ray_with_its_trace(ray_cluster: Any) -> None:
    with pytest.raises(ValueError, match="not foreseen") as one:
        run_task(ray_cluster, broken, 1)
    assert type(unwrapped(one.value)) is ValueError
    assert error_line(one.value) == "ValueError: 1 is not foreseen"
    for found in (run_tasks(ray_cluster, broken, [1]), run_actors(ray_cluster, Broken, [1], actors=1)):
        with pytest.raises(ray_cluster.exceptions.RayError, match=r"in broken\n(.*\n)*.*ValueError: 1 is not foreseen"):
            list(found)


def test_every_item_is_called_for_once_and_actors_keep_their_state(ray_cluster: Any) -> None:
    items = range(0, 20, 2)
    assert sorted(run_tasks(ray_cluster, even, iter(items))) == list(items)
    found = list(run_actors(ray_cluster, partial(Counter, 0), items, actors=2, tasks=4))
    assert sorted(number for number, _, _ in found) == list(items)
    pids = {pid for _, _, pid in found}
    assert 1 <= len(pids) <= 2
    for pid in pids:  # an actor that was made anew for a task would count from the start
        assert sorted(calls for _, calls, own in found if own == pid) == list(
            range(1, 1 + sum(own == pid for _, _, own in found)))


def test_nothing_to_do(ray_cluster: Any) -> None:
    assert list(run_tasks(ray_cluster, even, [])) == []
    assert list(run_actors(ray_cluster, partial(Counter, 7), [], actors=1)) == []


@pytest.mark.parametrize("way", ["tasks", "actors"])
def test_results_come_as_they_are_completed(way: str, ray_cluster: Any, tmp_path: Path) -> None:
    """Would catch a stage that hands out nothing until all is done: no progress, and everything in memory."""
    make = partial(Waits, tmp_path)
    results = (run_tasks(ray_cluster, make(), [0, 1], cpus=0.5) if way == "tasks"
               else run_actors(ray_cluster, make, [0, 1], actors=1))  # the items of an actor wait for each other
    first = next(results)
    (tmp_path / "go-on").touch()
    assert [first, *results] in ([0, 1], [1, 0])


@pytest.mark.parametrize("way", ["tasks", "actors"])
def test_a_lost_worker_is_replaced(way: str, ray_cluster: Any, tmp_path: Path) -> None:
    make = partial(DiesOnce, tmp_path, 3)
    found = (run_tasks(ray_cluster, make(), range(6)) if way == "tasks"
             else run_actors(ray_cluster, make, range(6), actors=1))
    assert sorted(found) == list(range(6))
    assert (tmp_path / "tried-3").exists()


def test_without_restart_a_lost_actor_ends_the_stage(ray_cluster: Any, tmp_path: Path) -> None:
    """So that its caller may go on with fewer actors."""
    with pytest.raises(ray_cluster.exceptions.RayError):
        list(run_actors(ray_cluster, partial(DiesOnce, tmp_path, 3), range(6), actors=1, restart=False))


def test_an_outcome_is_whole_after_pickling() -> None:
    again: Outcome[int] = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(Outcome.of(even, 7)))))
    with pytest.raises(OddError) as found:
        again.result()
    assert odd_error(found) == ODD
    assert Outcome.of(even, 2).result() == 2
    with pytest.raises(ValueError, match="not foreseen"):
        Outcome.of(broken, 1)


def test_the_line_of_an_error() -> None:
    from ray.exceptions import RayTaskError
    from ray.train import WorkerGroupError

    mistake, trace = FssError("is bad", where="here"), "Traceback\nof many lines"
    raised = RayTaskError("call", trace, RayTaskError("inner", trace, mistake)).as_instanceof_cause()
    assert error_line(raised) == error_line(mistake) == "here: is bad"
    assert error_line(WorkerGroupError("several", {0: RuntimeError("lost a peer"), 1: mistake})) == "here: is bad"
    outer = ValueError("outer")
    outer.__cause__ = KeyError("inner")
    assert error_line(outer) == "KeyError: 'inner'"
    explained = FssError("cannot be read")
    explained.__cause__ = OSError("disk")
    assert error_line(explained) == "cannot be read"
    assert error_line(ValueError("first\n\n last \n")) == "ValueError: last"
    assert error_line(ValueError("")) == "ValueError: "
