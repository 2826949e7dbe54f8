"""`ensure_base_learners`: base learners are trained before the runs that build on them, once for all that share one.

A base learner's training is a run: killed, it goes on from its last checkpoint, at once where a process or machine was
lost. If it failed, the next command tries it again, and the runs that need it fail with its error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.base.limits import usable_cores
from pipelines.base.outcome import error_line
from pipelines.base.progress import Bar, say
from pipelines.base.storage import Store, join
from pipelines.base.version import code_version
from pipelines.base.workspace import Workspace
from pipelines.config.base_learner import BaseLearnerSpec
from pipelines.config.recipe import Recipe
from pipelines.config.run import RunSpec
from pipelines.data.folds import FoldData
from pipelines.evaluation.drive import is_retryable
from pipelines.evaluation.steps import hold_out
from pipelines.sweeps.execute import TRAINING_BYTES, pack_runs, tracking
from pipelines.sweeps.machines import bundles_of, has_autoscaler, machines_of, request_machines
from pipelines.sweeps.room import ClusterRoom, check_room, fitting, runs_at_once
from pipelines.sweeps.schedule import Machine, QueuedRun, RunResources, Schedule
from pipelines.training.base_learner import BaseLearnerInfo, BaseLearnerRun, open_base_learner, read_base_learner
from pipelines.training.worker import train_run


def base_learners_of(specs: Sequence[RunSpec]) -> list[BaseLearnerSpec]:
    """The base learners that runs build on, each once. A run that holds classes out needs one without these as well."""
    found: dict[str, BaseLearnerSpec] = {}
    for spec in specs:
        for one in (spec, *_without_held_out(spec)):
            if one.learner:
                found.setdefault(one.learner.name, one.learner)
    return list(found.values())


def _without_held_out(spec: RunSpec) -> list[RunSpec]:
    if not spec.base_learner or spec.holdout or spec.train.selection != "base-holdout":
        return []
    return [spec.model_copy(update={"holdout": tuple(hold_out(FoldData.of(spec), spec.train))})]


def ensure_base_learners(recipe: Recipe, specs: Sequence[RunSpec], ray: Any) -> None:
    """Train the base learners of these runs that are missing. One that fails leaves error.json in its folder.

    Raises `FssError` if the cluster has no room for one.
    """
    store = Store(Workspace(recipe.out).runs)
    wanted = [s for s in base_learners_of(specs) if read_base_learner(join(store.url, s.name)) is None]
    if not wanted:
        return
    by_name, tries = {s.name: s for s in wanted}, dict.fromkeys((s.name for s in wanted), 0)
    schedule = Schedule(machines_of(ray), limit=recipe.sweep.parallel)

    def queued(key: str, machines: Sequence[Machine]) -> QueuedRun:
        return _queued(recipe, by_name[key], machines)

    schedule.add(queued(key, schedule.machines) for key in by_name)
    if not has_autoscaler():
        check_room(schedule, ray)
    with (tracking(recipe, ray) as tracker, request_machines(ray) as request,
          Bar("base learners", len(wanted), unit="runs") as bar):
        request.ask(bundles_of(schedule.wanted()))
        threads = max(1, usable_cores() // runs_at_once(schedule))
        runs = {s.name: _context(recipe, s, threads, tracker) for s in wanted}
        for run in runs.values():
            tracker.run.remote(run.label, params=run.spec.model_dump(mode="json"), tags={"fss.code": code_version()})
        room = ClusterRoom(schedule, request, ray, queued)
        task = ray.remote(_train).options(num_cpus=0, max_retries=0)
        for name, ref in pack_runs(schedule, lambda key: task.remote(runs[key]), ray, room.look):
            error, tries[name] = _error_of(ref, ray), tries[name] + 1
            if error and is_retryable(error) and tries[name] <= recipe.sweep.retries:
                say(f"{name} failed ({error_line(error)}); it will be tried again")
                schedule.add([queued(name, schedule.machines)])
                continue
            store.delete(f"{name}/error.json")
            if error:
                say(f"{name} failed: {error_line(error)}")
                store.write_json(f"{name}/error.json", {"error": error_line(error)})
            tracker.end.remote(name, *(["FAILED"] if error else []))
            bar.step()


def _queued(recipe: Recipe, spec: BaseLearnerSpec, machines: Sequence[Machine]) -> QueuedRun:
    resources = RunResources(cpus=recipe.sweep.cpus_per_run, gpus=recipe.sweep.gpus_per_run, memory=TRAINING_BYTES)
    return QueuedRun(key=spec.name, resources=fitting(resources, machines), seconds=float(spec.config.steps))


def _context(recipe: Recipe, spec: BaseLearnerSpec, threads: int, tracker: Any) -> BaseLearnerRun:
    sweep = recipe.sweep
    return BaseLearnerRun(spec=spec, runs=Workspace(recipe.out).runs, cpus=sweep.cpus_per_run, gpus=sweep.gpus_per_run,
                          retries=sweep.retries, tracker=tracker, threads=threads)


def _train(run: BaseLearnerRun) -> BaseLearnerInfo:
    found: BaseLearnerInfo = train_run(run, open_base_learner)
    return found


def _error_of(ref: Any, ray: Any) -> Exception | None:
    """The error of a training, None if it succeeded."""
    try:
        ray.get(ref)
    except Exception as error:
        return error
    return None
