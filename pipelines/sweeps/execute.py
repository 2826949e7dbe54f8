"""Execution of runs: they are packed into the cluster, watched, retried where that may help, and recorded.

Each run is a driver task that takes no CPU. It is started when the schedule has room for its workers and memory for the
driver, so no run waits for resources that another run of the sweep occupies. Ray Train's controller runs beside the
driver. Drivers are placed on machines that have CPUs: the head of a large cluster has none, and memory for few of them.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from pipelines.base.limits import usable_cores
from pipelines.base.outcome import error_line
from pipelines.base.progress import say
from pipelines.base.storage import Store
from pipelines.base.tracking import open_tracker
from pipelines.base.version import code_version
from pipelines.base.workspace import Workspace
from pipelines.config.recipe import Recipe
from pipelines.evaluation.drive import ScoringConfig, drive_run, failed_result
from pipelines.evaluation.results import RunResult, untested_line
from pipelines.sweeps.lengths import RunLengths, RunWork
from pipelines.sweeps.machines import MachineRequest, bundles_of, has_autoscaler, machines_of, request_machines
from pipelines.sweeps.room import ClusterRoom, check_room, fitting, runs_at_once
from pipelines.sweeps.schedule import Machine, QueuedRun, RunResources, Schedule
from pipelines.sweeps.watch import RunState, SweepWatch
from pipelines.training.context import RunContext

# bytes of a driver: of a run that trains with Ray Train's controller, and of one that is only scored
TRAINING_BYTES, SCORING_BYTES = 1_200_000_000, 400_000_000


@dataclass
class PlannedRun:
    """A run of a sweep, how it is scored, the label of its matrix cell, and how often it was started."""

    run: RunContext
    scoring: ScoringConfig
    cell: str = ""
    parent: str = ""  # name of the MLflow run above it; empty: the sweep's
    drive: Callable[..., RunResult] = drive_run  # trains and scores the run: called with `run` and `scoring`
    amount: RunWork | None = None  # its work, where it is not that of a whole run
    tries: int = 0
    began: float = 0.0  # start of the last try, by the monotonic clock

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.run.spec.name

    @property
    def work(self) -> RunWork:
        """The work of each of its stages."""
        return self.amount or RunWork.of(self.run.spec, self.scoring.config)

    @property
    def resources(self) -> RunResources:
        """CPUs, GPUs and workers that the run takes, and the memory of its driver."""
        trains = self.run.spec.trains
        workers = self.run.spec.train.workers if trains else 1
        return RunResources(cpus=self.run.cpus / workers, gpus=self.run.gpus / workers, workers=workers,
                            memory=TRAINING_BYTES if trains else SCORING_BYTES)

    def queued(self, lengths: RunLengths, machines: Sequence[Machine]) -> QueuedRun:
        """The run as the schedule takes it, with its expected length."""
        resources, seconds = fitting(self.resources, machines), lengths.expect(self.run.spec, self.work)
        return QueuedRun(key=self.name, resources=resources, seconds=seconds)


def execute(recipe: Recipe, plans: Sequence[PlannedRun], ray: Any, *, sweep: bool = False,
            before: Sequence[RunState] = ()) -> dict[str, RunResult]:
    """Execute the plans below one MLflow run; run -> result, failed ones with `error`.

    With `sweep` the state of the table is written into the workspace. `before` are rows of runs that were finished
    earlier. Raises `FssError` for a run that the cluster has no room for.
    """
    parent = sweep_key(recipe, plans)
    facts = {"runs": len(plans), "recipe": recipe.name}
    with tracking(recipe, ray) as tracker, tracked_parent(tracker, parent, facts):
        return execute_below(parent, recipe, plans, ray, tracker, save=sweep, before=before)


@contextmanager
def tracked_parent(tracker: Any, key: str, params: Mapping[str, Any]) -> Iterator[None]:
    """Keep the MLflow run `key` open meanwhile; after an exception it ends as KILLED."""
    tracker.run.remote(key, params=params, tags={"fss.code": code_version()})
    try:
        yield
    except BaseException:
        tracker.end.remote(key, "KILLED")
        raise
    tracker.end.remote(key)


def execute_below(parent: str, recipe: Recipe, plans: Sequence[PlannedRun], ray: Any, tracker: Any, *,
                  save: bool, before: Sequence[RunState] = (), threads: int = 0,
                  search: bool = False) -> dict[str, RunResult]:
    """As `execute`, with the tracking actor of the caller and below its MLflow run `parent`.

    threads: torch threads of a worker; 0: the machine's cores, divided among the runs that are under way at first.
    search: whether the runs are trials of `fss search`.
    """
    lengths = RunLengths(Workspace(recipe.out).url)
    machines = machines_of(ray)
    schedule = Schedule(machines, limit=recipe.sweep.parallel)
    schedule.add(p.queued(lengths, machines) for p in plans)
    by_name = {p.name: p for p in plans}
    if not has_autoscaler():
        check_room(schedule, ray)
    with request_machines(ray) as request:
        request.ask(bundles_of(schedule.wanted()))
        threads = threads or max(1, usable_cores() // runs_at_once(schedule))
        for p in plans:
            p.run = p.run.model_copy(update={"threads": threads, "tracker": tracker})
        _open_runs(parent, plans, tracker)
        rows = [*before, *(RunState(run=p.name, cell=p.cell) for p in plans)]
        with SweepWatch(Workspace(recipe.out).url, recipe.name, rows, save=save, search=search) as watch:
            running = _Running(by_name, schedule, lengths, watch, tracker, request, ray)
            try:
                found = dict(running.results())
                watch.end("finished")
            except BaseException as error:
                watch.end("stopped", "interrupted" if isinstance(error, KeyboardInterrupt) else error_line(error))
                for name in running.open_runs:
                    tracker.end.remote(name, "KILLED")
                raise
    return found


def pack_runs(schedule: Schedule, submit: Callable[[str], Any], ray: Any,
              tick: Callable[[], None]) -> Iterator[tuple[str, Any]]:
    """Start tasks as the schedule says; yields (key, reference) of each task that ends. Calls `tick` every second."""
    under_way: dict[Any, str] = {}
    try:
        while schedule.busy:
            for task in schedule.start():
                under_way[submit(task.key)] = task.key
            if not under_way:  # the cluster has lost the machines that the rest needs
                time.sleep(1.0)
            for ref in ray.wait(list(under_way), num_returns=1, timeout=1.0)[0] if under_way else []:
                key = under_way.pop(ref)
                schedule.finish(key)
                yield key, ref
            tick()
    finally:
        for ref in under_way:  # after an interruption, end the drivers and with them their workers
            with suppress(Exception):
                ray.cancel(ref, force=True)


class _Running:
    """Runs of a sweep that are under way, and their table."""

    def __init__(self, plans: dict[str, PlannedRun], schedule: Schedule, lengths: RunLengths, watch: SweepWatch,
                 tracker: Any, request: MachineRequest, ray: Any) -> None:
        self.plans, self.schedule, self.lengths, self.watch = plans, schedule, lengths, watch
        self.tracker, self.ray = tracker, ray
        self.room = ClusterRoom(schedule, request, ray, lambda key, on: plans[key].queued(lengths, on))
        self._task_of = cache(ray.remote)  # a task for each function, which Ray then sends to machines once
        self.open_runs = set(plans)  # those whose results are not recorded yet

    def results(self) -> Iterator[tuple[str, RunResult]]:
        """(run, result) as runs end. Runs that failed but may succeed on another try go back into the queue."""
        for name, ref in pack_runs(self.schedule, self._submit, self.ray, self._tick):
            plan = self.plans[name]
            result = _outcome(ref, plan, self.ray)
            if result.retryable and plan.tries <= plan.run.retries:
                say(f"{name} failed ({result.error}); it will be tried again")
                self.schedule.add([plan.queued(self.lengths, self.schedule.machines)])
                continue
            record_result(self.tracker, result, plan.run.runs)
            self.open_runs.discard(name)
            self.watch.end_run(result, plan.tries)
            if not result.error:
                self.lengths.learn(result, time.monotonic() - plan.began)
                self.lengths.save()
                machines = self.schedule.machines
                self.schedule.update_lengths({k: self.plans[k].queued(self.lengths, machines).seconds
                                              for k in self.schedule.waiting})
            yield name, result

    def _submit(self, name: str) -> Any:
        plan = self.plans[name]
        plan.tries, plan.began = plan.tries + 1, time.monotonic()
        memory = int(self.schedule.under_way[name][0].resources.memory)
        return self._task_of(plan.drive).options(num_cpus=0, memory=memory or None, max_retries=0,
                                                 scheduling_strategy=_beside(self.schedule.driver_node(name)),
                                                 ).remote(plan.run, plan.scoring)

    def _tick(self) -> None:
        progress: dict[str, dict[str, Any]] = {}
        with suppress(self.ray.exceptions.RayError):  # the tracker is being restarted
            progress = self.ray.get(self.tracker.progress.remote(), timeout=30)
        self.room.look()
        rows = {name: self._row(self.plans[name], progress.get(name, {})) for name in self.schedule.under_way}
        self.watch.update(rows, self.schedule.seconds_left({n: r["left_s"] for n, r in rows.items()}))

    def _row(self, plan: PlannedRun, progress: dict[str, Any]) -> dict[str, Any]:
        """The table's row of a run that is under way; `progress` is what the tracker has of it."""
        stage, step = progress.get("stage") or "starting", int(progress.get("step", 0))
        stages, work = self.lengths.stages(plan.run.spec, plan.work), plan.work.model_dump()
        names, total = list(stages), max(sum(stages.values()), 1e-6)
        done = sum(stages[n] for n in names[:names.index(stage)]) if stage in names else 0.0
        done += stages.get(stage, 0.0) * min(step / max(work.get(stage, 1), 1), 1.0)
        elapsed, share = time.monotonic() - plan.began, done / total
        left = elapsed * (1 - share) / share if share > 0.05 else max(total - elapsed, 1.0)
        return {"stage": stage, "step": step, "of": work.get(stage, 0), "left_s": left, "tries": plan.tries,
                **{k: progress.get(k) for k in ("loss", "miou", "episodes_per_s")}}


def _beside(node: str) -> Any:
    """Ray's strategy that prefers a machine, given by its id, and takes another if that one is lost or full."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node, soft=True, _spill_on_unavailable=True) if node else "DEFAULT"


def _outcome(ref: Any, plan: PlannedRun, ray: Any) -> RunResult:
    try:
        result: RunResult = ray.get(ref)
    except Exception as error:  # the driver's process died
        return failed_result(plan.run, plan.scoring, error)
    return result


# ---- tracking -----------------------------------------------------------------------------------------------------

def tracking(recipe: Recipe, ray: Any) -> AbstractContextManager[Any]:
    """Open the tracking actor of a sweep."""
    return open_tracker(recipe.out, recipe.project_name, ray, uri=recipe.tracking)


def sweep_key(recipe: Recipe, plans: Sequence[PlannedRun]) -> str:
    """Name of the MLflow run that is the parent of a sweep's runs."""
    digest = hashlib.sha256("\n".join(p.name for p in plans).encode()).hexdigest()[:8]
    return f"sweep-{recipe.name}-{digest}"


def _open_runs(parent: str, plans: Sequence[PlannedRun], tracker: Any) -> None:
    for plan in plans:
        spec = plan.run.spec
        tags = {"fss.data": spec.data_hash, "fss.code": code_version(), "fss.method": spec.method.name}
        tracker.run.remote(spec.name, parent=plan.parent or parent, params=spec.params, tags=tags)


def record_result(tracker: Any, result: RunResult, runs: str) -> None:
    """Record a result in the tracking store. An error is also printed and written into the run's folder."""
    store = Store(runs)
    if result.error:
        say(f"{result.run} failed: {result.error}")
        store.write_json(f"{result.run}/error.json", {"error": result.error})
        tracker.tags.remote(result.run, {"fss.error": result.error})
        tracker.end.remote(result.run, "FAILED")
        return
    store.delete(f"{result.run}/error.json")
    if line := untested_line(result):
        say(line)
    figures = {"miou": result.miou, "fb_iou": result.fb_iou, "images_per_s": result.images_per_s,
               "train_s": result.train_s, "miou_low": result.interval[0], "miou_high": result.interval[1]}
    figures |= {f"iou/{name}": value for name, value in result.per_class.items()}
    chosen = result.details.get("selection", {})
    held_out = chosen.get("policy") == "search"  # scored on held-out base classes, not on novel ones
    tracker.metrics.remote(result.run, {("select/" if held_out else "") + k: v for k, v in figures.items()},
                           result.steps)
    tracker.tags.remote(result.run, {
        "fss.list": result.list_hash, "fss.bundle": result.bundle_id, "fss.untrained": result.untrained,
        "fss.selection": chosen.get("policy", "none"), "fss.held_out": ", ".join(chosen.get("held_out", {}).values())})
    tracker.end.remote(result.run)
