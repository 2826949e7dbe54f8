"""Runs carried out: packed into the cluster, watched, tried again where that may help, and recorded.

Each run is a driver task that takes no CPU; it starts its workers when the schedule has a place for them, so nothing
waits for a resource that something else of the sweep holds.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from fss_models.errors import FssError
from pipelines.base.progress import say
from pipelines.base.storage import Store
from pipelines.base.tracking import Tracker, spool_folder, tracking_uri
from pipelines.base.version import code_version
from pipelines.base.workspace import Workspace
from pipelines.config.recipe import Recipe
from pipelines.evaluation.drive import ScoringConfig, drive_run, failed_result, innermost_line
from pipelines.evaluation.results import RunResult, untested_line
from pipelines.sweeps.lengths import RunLengths, RunWork
from pipelines.sweeps.schedule import Machine, QueuedRun, RunResources, Schedule
from pipelines.sweeps.watch import RunState, SweepWatch
from pipelines.training.context import RunContext

MACHINES_S = 10.0  # between two looks at which machines there are


@dataclass
class PlannedRun:
    """A run of a sweep, how it is scored, which cell of the matrix it is of."""

    run: RunContext
    scored: ScoringConfig
    cell: str = ""
    tries: int = 0
    began: float = 0.0

    @property
    def name(self) -> str:
        """The run's."""
        return self.run.spec.name

    @property
    def need(self) -> RunResources:
        """What it holds while it is under way."""
        workers = self.run.spec.train.workers if self.run.spec.trains else 1
        return RunResources(cpus=self.run.cpus / workers, gpus=self.run.gpus / workers, workers=workers)


def execute(recipe: Recipe, plans: Sequence[PlannedRun], ray: Any, *, sweep: bool = False,
            before: Sequence[RunState] = ()) -> dict[str, RunResult]:
    """Carry out the plans; run -> result, failed ones with `error`.

    `sweep`: the workspace keeps the table's state; `before`: rows of the table that are finished already.
    Raises `FssError` for a run that the cluster has no room for.
    """
    lengths = RunLengths(Workspace(recipe.out).url)
    schedule = Schedule(machines_of(ray), limit=recipe.sweep.parallel)
    schedule.add(QueuedRun(key=p.name, need=p.need, seconds=lengths.expect(p.run.spec, p.scored.config)) for p in plans)
    _check_room(schedule, ray)
    by_name = {p.name: p for p in plans}
    with tracking(recipe, ray) as tracker:
        threads = max(1, (os.cpu_count() or 1) // _at_a_time(schedule))
        for p in plans:
            p.run = p.run.model_copy(update={"threads": threads, "tracker": tracker})
        _open_runs(recipe, plans, tracker)
        rows = [*before, *(RunState(run=p.name, cell=p.cell) for p in plans)]
        with SweepWatch(Workspace(recipe.out).url, recipe.name, rows, kept=sweep) as watch:
            running = _Running(by_name, schedule, lengths, watch, tracker, ray)
            try:
                found = dict(running.results(Workspace(recipe.out).runs))
                watch.end("finished")
            except BaseException as error:
                watch.end("stopped", "interrupted" if isinstance(error, KeyboardInterrupt) else innermost_line(error))
                raise
        tracker.end.remote(sweep_key(recipe, plans))
    return found


def machines_of(ray: Any) -> list[Machine]:
    """The cluster's machines that are alive, with all they have."""
    alive = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    return [Machine(cpus=r.get("CPU", 0.0), gpus=(1.0,) * int(r.get("GPU", 0))) for r in alive]


def _check_room(schedule: Schedule, ray: Any) -> None:
    """Raise `FssError` for a run that would wait for ever."""
    task = schedule.misfit()
    if task is None:
        return
    have, need = ray.cluster_resources(), task.need
    for kind, amount in (("CPU", need.cpus * need.workers), ("GPU", need.gpus * need.workers)):
        if amount > have.get(kind, 0.0):
            raise FssError(f"a run asks for {amount:g} {kind} but the cluster has {have.get(kind, 0.0):g}",
                           mend=f"lower sweep.{kind.lower()}s_per_run")
    raise FssError(f"a worker of a run asks for {need.cpus:g} CPU and {need.gpus:g} GPU, which no machine has together",
                   mend="lower sweep.cpus_per_run and gpus_per_run, or raise train.workers")


def _at_a_time(schedule: Schedule) -> int:
    """How many runs are under way at the beginning."""
    probe = Schedule(schedule.machines, schedule.limit, dict(schedule.waiting))
    return max(1, len(probe.start()))


def pack_runs(schedule: Schedule, submit: Callable[[str], Any], ray: Any,
              tick: Callable[[], None]) -> Iterator[tuple[str, Any]]:
    """(key, reference) of each task that has ended, all being started as the schedule says; `tick` every second."""
    under_way: dict[Any, str] = {}
    try:
        while schedule.busy:
            for task in schedule.start():
                under_way[submit(task.key)] = task.key
            if not under_way:  # the cluster has lost what would carry the rest
                time.sleep(1.0)
            for ref in ray.wait(list(under_way), num_returns=1, timeout=1.0)[0] if under_way else []:
                key = under_way.pop(ref)
                schedule.finish(key)
                yield key, ref
            tick()
    finally:
        for ref in under_way:  # stopped: drivers, and with them their workers, end
            with suppress(Exception):
                ray.cancel(ref, force=True)


class _Running:
    """The sweep while it is under way."""

    def __init__(self, plans: dict[str, PlannedRun], schedule: Schedule, lengths: RunLengths, watch: SweepWatch,
                 tracker: Any, ray: Any) -> None:
        self.plans, self.schedule, self.lengths, self.watch = plans, schedule, lengths, watch
        self.tracker, self.ray = tracker, ray
        self._task = ray.remote(drive_run).options(num_cpus=0, max_retries=0)
        self._looked = time.monotonic()

    def results(self, runs: str) -> Iterator[tuple[str, RunResult]]:
        """Results as runs end; those that died for a reason that may pass go back into the queue."""
        for name, ref in pack_runs(self.schedule, self._submit, self.ray, self._tick):
            plan = self.plans[name]
            result = _outcome(ref, plan, self.ray)
            if result.retryable and plan.tries <= plan.run.retries:
                say(f"{name} failed ({result.error}); it is tried again")
                self.schedule.add([self._as_task(plan)])
                continue
            record_result(self.tracker, result, runs)
            self.watch.result(result, plan.tries)
            if not result.error:
                self.lengths.learn(result, time.monotonic() - plan.began)
                self.lengths.save()
                self.schedule.expect({k: self._as_task(self.plans[k]).seconds for k in self.schedule.waiting})
            yield name, result

    def _as_task(self, plan: PlannedRun) -> QueuedRun:
        return QueuedRun(key=plan.name, need=plan.need, seconds=self.lengths.expect(plan.run.spec, plan.scored.config))

    def _submit(self, name: str) -> Any:
        plan = self.plans[name]
        plan.tries, plan.began = plan.tries + 1, time.monotonic()
        return self._task.remote(plan.run, plan.scored)

    def _tick(self) -> None:
        told: dict[str, dict[str, Any]] = {}
        with suppress(self.ray.exceptions.RayError):  # the tracker is being started again
            told = self.ray.get(self.tracker.progress.remote(), timeout=30)
        if time.monotonic() - self._looked > MACHINES_S:
            self._looked = time.monotonic()
            self.schedule.resize(machines_of(self.ray))
        rows = {name: self._row(self.plans[name], told.get(name, {})) for name in self.schedule.under_way}
        self.watch.update(rows, self.schedule.left({n: r["left_s"] for n, r in rows.items()}))

    def _row(self, plan: PlannedRun, told: dict[str, Any]) -> dict[str, Any]:
        """What the table shows of a run under way."""
        stage, step = told.get("stage") or "starting", int(told.get("step", 0))
        stages = self.lengths.stages(plan.run.spec, plan.scored.config)
        work = RunWork.of(plan.run.spec, plan.scored.config).model_dump()
        names, total = list(stages), max(sum(stages.values()), 1e-6)
        done = sum(stages[n] for n in names[:names.index(stage)]) if stage in names else 0.0
        done += stages.get(stage, 0.0) * min(step / max(work.get(stage, 1), 1), 1.0)
        elapsed, share = time.monotonic() - plan.began, done / total
        left = elapsed * (1 - share) / share if share > 0.05 else max(total - elapsed, 1.0)
        return {"stage": stage, "step": step, "of": work.get(stage, 0), "left_s": left, "tries": plan.tries,
                **{k: told.get(k) for k in ("loss", "miou", "episodes_per_s")}}


def _outcome(ref: Any, plan: PlannedRun, ray: Any) -> RunResult:
    try:
        result: RunResult = ray.get(ref)
    except Exception as error:  # the driver's process died
        return failed_result(plan.run, plan.scored, error)
    return result


# ---- tracking -----------------------------------------------------------------------------------------------------

@contextmanager
def tracking(recipe: Recipe, ray: Any) -> Iterator[Any]:
    """The sweep's tracking actor, on this machine (its spool is here). Says so if entries could not be delivered."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(Tracker).options(num_cpus=0, scheduling_strategy=here, max_restarts=-1).remote(
        tracking_uri(recipe.out, recipe.tracking), recipe.project_name, str(spool_folder(recipe.out)))
    try:
        yield actor
    finally:
        reason = "its process was lost"
        with suppress(ray.exceptions.RayError):
            reason = ray.get(actor.close.remote())
        if reason:
            say(f"tracking: {reason}; entries wait in {spool_folder(recipe.out)} for the next command")
        ray.kill(actor)


def sweep_key(recipe: Recipe, plans: Sequence[PlannedRun]) -> str:
    """The parent run's name."""
    digest = hashlib.sha256("\n".join(p.name for p in plans).encode()).hexdigest()[:8]
    return f"sweep-{recipe.name}-{digest}"


def _open_runs(recipe: Recipe, plans: Sequence[PlannedRun], tracker: Any) -> None:
    parent = sweep_key(recipe, plans)
    tracker.run.remote(parent, params={"runs": len(plans), "recipe": recipe.name}, tags={"fss.code": code_version()})
    for plan in plans:
        spec = plan.run.spec
        tags = {"fss.data": spec.data_hash, "fss.code": code_version(), "fss.method": spec.method.name}
        tracker.run.remote(spec.name, parent=parent, params=spec.params, tags=tags)


def record_result(tracker: Any, result: RunResult, runs: str) -> None:
    """A result in the tracking store and, if it failed, on screen and in the run's folder."""
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
    tracker.metrics.remote(result.run, figures, result.steps)
    chosen = result.details.get("selection", {})
    tracker.tags.remote(result.run, {
        "fss.list": result.list_hash, "fss.bundle": result.bundle_id, "fss.untrained": result.untrained,
        "fss.selection": chosen.get("policy", "none"), "fss.held_out": ", ".join(chosen.get("held_out", {}).values())})
    tracker.end.remote(result.run)
