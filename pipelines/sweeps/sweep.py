"""`run_sweep`: train and score every (method, fold, seed), packed into the resources of the cluster.

Finished runs are not repeated, killed runs resume from their last checkpoint, failed runs are recorded and tried again
by the next command.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fss_models import registry
from fss_models.errors import FssError
from pipelines.base.cluster import cluster
from pipelines.base.progress import say
from pipelines.base.ray_stage import run_task
from pipelines.base.storage import Store
from pipelines.base.webhook import told_if_it_fails
from pipelines.base.workspace import Workspace
from pipelines.config.method import method_labels
from pipelines.config.recipe import Recipe
from pipelines.config.run import RunSpec
from pipelines.evaluation.drive import measure_latency, read_finished, scoring_config
from pipelines.evaluation.results import RunResult
from pipelines.features.build import ensure_features, features_url
from pipelines.sweeps.base_learners import ensure_base_learners
from pipelines.sweeps.execute import PlannedRun, execute
from pipelines.sweeps.machines import request_machines
from pipelines.sweeps.matrix import MatrixCell, expand_matrix, only_cell
from pipelines.sweeps.notify import SweepEvents
from pipelines.sweeps.owner import own_workspace
from pipelines.sweeps.plan import check_methods, plan_sweep
from pipelines.sweeps.watch import RunState
from pipelines.training.context import RunContext

RECIPE = "sweep/recipe.json"


def run_sweep(recipe: Recipe) -> list[RunResult]:
    """Train and score every run of the recipe; results in the order of the plan, failed ones with `error`.

    Raises `FssError` for a mistake in the recipe, a recipe of several cells, and a workspace in which a sweep is under
    way. A run that fails is a result, not an exception.
    """
    return run_cells(only_cell(recipe))[0][1]


def run_cells(recipe: Recipe) -> list[tuple[MatrixCell, list[RunResult]]]:
    """Train and score the runs of every cell of the recipe's matrix, all packed together: (cell, its results).

    Meanwhile this process owns the workspace. Raises `FssError` as `run_sweep` does, and `KeyboardInterrupt` when
    another process cancels the sweep.
    """
    found = expand_matrix(recipe)
    for cell in found:
        check_methods(cell.recipe)
    store = Store(Workspace(recipe.out).url)
    events = SweepEvents(store, recipe.sweep.notify)
    with own_workspace(store.url) as owner, told_if_it_fails(events.ended):
        store.write_json(RECIPE, recipe.model_dump(mode="json"))
        try:
            with cluster() as ray:
                with request_machines(ray) as request:
                    request.ask([{"CPU": 1.0}])  # Ray Data, which builds shards, waits for ever where there is no CPU
                    planned = [(cell, plan_sweep(cell.recipe)) for cell in found]
                results = _run_plans(recipe, planned, ray, sweep=True)
                for cell, some in zip(found, results, strict=True):
                    _idle_latency(cell, some, ray)
        except KeyboardInterrupt:
            if owner.ended:
                say(f"the sweep stops: {owner.ended}")
            raise
        events.done([one for some in results for one in some])
    return list(zip(found, results, strict=True))


def read_sweep_recipe(out: str) -> Recipe:
    """The recipe of the last sweep in the workspace `out`. Raises `FssError` if there was none."""
    store = Store(out)
    if not store.exists(RECIPE):
        raise FssError("no sweep was run here", where=store.url, hint="start one with `fss sweep run`")
    return Recipe.model_validate(store.read_json(RECIPE) | {"out": out})


def run_one(recipe: Recipe, *, method: str, fold: int, seed: int) -> RunResult:
    """Train and score one run of the recipe. `method` is a label of its methods, "" for the only one that trains.

    Raises `FssError` for an unknown method or fold, and if "" could mean several methods.
    """
    recipe = only_cell(recipe)
    labels = method_labels(recipe.methods)
    able = [x for x, m in zip(labels, recipe.methods, strict=True) if registry.method_class(m.name).trains]
    if not method and len(able) != 1:
        raise FssError("the recipe does not have exactly one method that trains", where=recipe.name,
                       hint=f"give --method, one of {', '.join(labels)}")
    chosen = method or able[0]
    if chosen not in labels:
        raise FssError(f"the recipe has no method {chosen!r}", where=recipe.name,
                       hint=f"known methods: {', '.join(labels)}")
    sweep = recipe.sweep.model_copy(update={"folds": [fold], "seeds": [seed]})
    narrowed = {"methods": [recipe.methods[labels.index(chosen)]], "sweep": sweep}
    one = recipe.model_copy(update=narrowed)
    with cluster() as ray:
        return run_specs(one, plan_sweep(one), ray)[0]


def run_specs(recipe: Recipe, specs: Sequence[RunSpec], ray: Any) -> list[RunResult]:
    """Train and score the runs that are not finished yet; results of all, in the order of `specs`."""
    return _run_plans(recipe, [(MatrixCell("", recipe), specs)], ray, sweep=False)[0]


def _run_plans(recipe: Recipe, planned: Sequence[tuple[MatrixCell, Sequence[RunSpec]]], ray: Any, *,
               sweep: bool) -> list[list[RunResult]]:
    """The results of every cell's runs. Runs that are not finished yet are executed together."""
    results: dict[tuple[str, str], RunResult] = {}
    plans = [PlannedRun(run, scoring_config(cell.recipe), cell.label) for cell, specs in planned
             for run in _contexts(cell.recipe, specs)]
    for plan in plans:
        if found := read_finished(plan.run, plan.scoring):
            results[plan.cell, plan.name] = found
    if results:
        say(f"{len(results)} of {len(plans)} runs are already finished")
    for cell, specs in planned:
        left = [s for s in specs if (cell.label, s.name) not in results]
        ensure_base_learners(cell.recipe, left, ray)
        if cell.recipe.train.features != "off" and any(s.trains for s in left):
            ensure_features(cell.recipe, left, ray)
    # A run that two cells score in different ways is trained and scored for the first, then scored for the other.
    while todo := {p.name: p for p in reversed(plans) if (p.cell, p.name) not in results}:
        known = [RunState(run=n, cell=c, status="done", miou=r.miou) for (c, n), r in results.items() if not r.error]
        for name, result in execute(recipe, list(reversed(todo.values())), ray, sweep=sweep, before=known).items():
            results[todo[name].cell, name] = result
    return [[results[cell.label, s.name] for s in specs] for cell, specs in planned]


def _contexts(recipe: Recipe, specs: Sequence[RunSpec]) -> list[RunContext]:
    return [RunContext(spec=s, runs=Workspace(recipe.out).runs, cpus=recipe.sweep.cpus_per_run,
                       gpus=recipe.sweep.gpus_per_run, retries=recipe.sweep.retries, features=features_url(recipe),
                       learners=Workspace(recipe.out).runs, feature_pool=recipe.features.pool_bytes) for s in specs]


def _idle_latency(cell: MatrixCell, results: Sequence[RunResult], ray: Any) -> None:
    """Measure the latency of every method while nothing else runs, and write it; up-to-date figures are kept."""
    recipe, name = cell.recipe, f"latency{cell.suffix}.json"
    labels = dict(zip([m.key for m in recipe.methods], method_labels(recipe.methods), strict=True))
    bundles: dict[str, RunResult] = {}
    for result in results:
        if not result.error:
            bundles.setdefault(labels[result.spec.method.key], result)
    store = Store(Workspace(recipe.out).url)
    known = store.read_json(name) if store.exists(name) else {}
    keys = {n: {"bundle_id": r.bundle_id, "eval_digest": r.eval_digest, "eval_batch": recipe.eval.batch,
                "gpus": recipe.sweep.gpus_per_run} for n, r in bundles.items()}
    if all(key.items() <= known.get(n, {}).items() for n, key in keys.items()):
        return
    say("measuring the latency of every method, with nothing else running")
    first = next(iter(bundles.values())).spec
    all_of_them = {n: r.bundle for n, r in bundles.items()}  # in one process, so that the figures can be compared
    gpus = recipe.sweep.gpus_per_run
    measured = run_task(ray, measure_latency, all_of_them, first.shards, first.fold, recipe.eval, gpus,
                        cpus=recipe.sweep.cpus_per_run / recipe.train.workers, gpus=gpus / recipe.train.workers)
    store.write_json(name, {n: {**found, **keys[n]} for n, found in measured.items()})
