"""Work in Ray's workers: one call as a task, or a stage of Ray Data that calls for every item, in tasks or in actors.

An `FssError` of a call is raised here as the worker raised it: it travels as a value (`Outcome`). Any other exception
is raised by Ray. A stage yields each result as soon as it is there, in order of completion, so that its caller can show
progress; items and results are pickled. A worker that dies is replaced, and its items are given to another one, so a
call may find that its work was begun or finished before.
"""

from __future__ import annotations

import logging
import pickle
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from pipelines.base.outcome import Outcome

T = TypeVar("T")
R = TypeVar("R")
Row = dict[str, Any]


def run_task(ray: Any, call: Callable[..., R], *args: Any, cpus: float = 1.0, gpus: float = 0.0, retries: int = 3) -> R:
    """The result of one call in a Ray task, which is started again up to `retries` times when its process is lost."""
    task = ray.remote(_outcome).options(name=call.__name__, num_cpus=cpus, num_gpus=gpus, max_retries=retries)
    outcome: Outcome[R] = ray.get(task.remote(call, *args))
    return outcome.result()


def run_tasks(ray: Any, call: Callable[[T], R], items: Iterable[T], *, cpus: float = 1.0) -> Iterator[R]:
    """The result for every item, each from a task of its own with `cpus`. Lost tasks are started again without end."""
    return _results(ray, items, 0, lambda data: data.map(_call_row, fn_kwargs={"call": call}, num_cpus=cpus))


def run_actors(ray: Any, make: Callable[[], Callable[[T], R]], items: Iterable[T], *, actors: int, cpus: float = 1.0,
               gpus: float = 0.0, restart: bool = True, tasks: int = 0) -> Iterator[R]:
    """The result for every item, from one of `actors` actors that each have `cpus`, `gpus` and their own `make()`.

    With more items than `tasks` (if given) they are divided among so many tasks; when an actor is lost, all items of
    its task are called for again. Without `restart` a lost actor ends the stage with Ray's error.
    """
    made, more = ray.put(make), {} if restart else {"max_restarts": 0}

    def stage(data: Any) -> Any:
        with warnings.catch_warnings():  # Ray warns about max_restarts, which is set on purpose
            warnings.simplefilter("ignore", DeprecationWarning)
            return data.map(_Actor, fn_constructor_args=(made,), compute=ray.data.ActorPoolStrategy(size=actors),
                            num_cpus=cpus, num_gpus=gpus or None, **more)

    return _results(ray, items, tasks, stage)


def _results(ray: Any, items: Iterable[T], tasks: int, stage: Callable[[Any], Any]) -> Iterator[Any]:
    rows = [{"item": pickle.dumps(item)} for item in items]
    if not rows:
        return
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # its messages would break the progress bar
    data = stage(ray.data.from_items(rows, override_num_blocks=min(len(rows), tasks or len(rows))))
    for block in data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for outcome in block["outcome"].to_pylist():
            yield pickle.loads(outcome).result()


def _outcome(call: Callable[..., R], *args: Any) -> Outcome[R]:
    return Outcome.of(call, *args)


def _call_row(row: Row, call: Callable[[Any], Any]) -> Row:
    return {"outcome": pickle.dumps(Outcome.of(call, pickle.loads(row["item"])))}


class _Actor:
    """What Ray Data keeps in each actor. If it cannot be made, each of its rows says why."""

    def __init__(self, made: Any) -> None:
        import ray

        self._made: Outcome[Callable[[Any], Any]] = Outcome.of(ray.get(made))

    def __call__(self, row: Row) -> Row:
        if self._made.error is not None:
            return {"outcome": pickle.dumps(self._made)}
        return _call_row(row, self._made.result())
