"""`run_sweep`: every (method, fold, seed) trained and scored, packed into whatever the cluster has.

Runs that are finished are left alone, killed ones go on from their last checkpoint, failed ones are recorded and tried
again by the next command.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from fss_models import registry
from fss_models.errors import FssError
from fss_models.prompt_sampling import kinds_of
from pipelines.base.cluster import cluster
from pipelines.base.progress import Bar, say
from pipelines.base.storage import Store
from pipelines.base.workspace import Workspace
from pipelines.bundles.bundle import read_bundle_info
from pipelines.bundles.weights import fetch
from pipelines.config.method import MethodConfig, method_labels
from pipelines.config.recipe import Recipe
from pipelines.config.run import RunSpec, eval_digest, shipped_weights
from pipelines.data.ensure import ensure_mixture, ensure_shards, mixture_shares
from pipelines.data.folds import FoldData, list_hash, resolve_steps
from pipelines.data.shardset import Shards
from pipelines.evaluation.drive import ScoringConfig, evaluate_bundle, failed_result, measure_latency, read_finished
from pipelines.evaluation.results import RunResult
from pipelines.evaluation.steps import hold_out
from pipelines.features.build import ensure_features, features_url
from pipelines.sweeps.execute import PlannedRun, execute
from pipelines.sweeps.matrix import MatrixCell, cells, only_cell, sweep_specs
from pipelines.sweeps.owner import owning
from pipelines.sweeps.watch import RunState
from pipelines.training.context import RunContext

RECIPE = "sweep/recipe.json"
ALL_CLASSES = -1  # as a fold: none is held out


def plan_sweep(recipe: Recipe) -> list[RunSpec]:
    """The runs of a recipe, its shards being there (they are built if not).

    Raises `FssError` for folds, methods, settings, presets and weight files that do not exist, and for prompts that a
    method cannot read.
    """
    recipe = only_cell(recipe)
    check_methods(recipe)
    shards = ensure_shards(recipe)
    known = shards.folds
    folds = recipe.sweep.folds or known
    for fold in folds:
        if fold not in (*known, ALL_CLASSES):
            raise FssError(f"there is no fold {fold}", where=recipe.data.name, mend=f"folds: {known}")
    _check_shipped(recipe, shards)
    return _specs(recipe, shards, folds, ensure_mixture(recipe))


def check_methods(recipe: Recipe) -> None:
    """Raise `FssError` for methods, settings, presets, weight files and prompts that do not exist or do not fit."""
    for method in recipe.methods:
        registry.make_config(method.name, method.config)
        registry.check_preset(method.name, method.preset)
        _check_prompts(recipe, method)
        fetch(method.weights, method.sha256)


def _check_shipped(recipe: Recipe, shards: Shards) -> None:
    """Raise `FssError` if weights that ship with fss saw test photos: their score would be refused after training."""
    test = {r["sha256"][:16]: r["file_name"] for r in shards.rows.values() if r["split"] == "test"}
    for method in recipe.methods:
        asked = registry.method_class(method.name).trains and not recipe.eval.list
        shipped = shipped_weights(method) if asked else None
        seen = [p for p in shipped.provenance.photos if p in test] if shipped else []
        if seen:
            raise FssError(f"the weights that ship for {method.preset} have seen {len(seen)} of {len(test)} test "
                           f"photos (first: {test[seen[0]]})", where=recipe.data.name,
                           mend="make these train photos (data.split.file), or set methods.N.weights=random")


def _specs(recipe: Recipe, shards: Shards, folds: list[int], mixed: Sequence[Shards]) -> list[RunSpec]:
    chosen = [None if fold == ALL_CLASSES else fold for fold in folds]
    trains = {fold: resolve_steps(recipe.train, shards, fold) for fold in chosen}
    if recipe.train.selection == "base-holdout":
        for fold in chosen:
            hold_out(FoldData.open(shards.url, fold), trains[fold])
    specs = sweep_specs(recipe, shards=shards.url, data_hash=shards.manifest.content_hash, trains=trains,
                        mixture=mixture_shares(recipe, mixed))
    return [s.model_copy(update={"selected_on": eval_digest(recipe.eval, list_hash(recipe.eval, s.fold))})
            if s.trains and s.train.selection == "published" else s for s in specs]


def _check_prompts(recipe: Recipe, method: MethodConfig) -> None:
    reads = registry.method_class(method.name).prompt_kinds
    for key, name in (("train", recipe.train.prompts), ("eval", recipe.eval.prompts)):
        if not kinds_of(name) <= reads:
            known = ", ".join(sorted(k.name.lower() for k in reads))
            raise FssError(f"{key}.prompts: method {method.name!r} reads no {name!r} prompts", where=recipe.name,
                           mend=f"it reads: {known}")


def run_sweep(recipe: Recipe) -> list[RunResult]:
    """Train and score every run of the recipe; results in the order of the plan, failed ones with `error`.

    Raises `FssError` for a mistake in the recipe, a recipe of several cells and a workspace in which a sweep is under
    way; a run that fails is a result, not an exception.
    """
    return run_cells(only_cell(recipe))[0][1]


def run_cells(recipe: Recipe) -> list[tuple[MatrixCell, list[RunResult]]]:
    """The same for every cell of the recipe's matrix, all runs being packed together. The workspace is held meanwhile.

    A cancellation by another process raises `KeyboardInterrupt`.
    """
    found = cells(recipe)
    for cell in found:
        check_methods(cell.recipe)
    store = Store(Workspace(recipe.out).url)
    with owning(store.url) as owner:
        store.write_json(RECIPE, recipe.model_dump(mode="json"))
        try:
            with cluster() as ray:
                planned = [(cell, plan_sweep(cell.recipe)) for cell in found]
                results = _run_plans(recipe, planned, ray, sweep=True)
                for cell, some in zip(found, results, strict=True):
                    _idle_latency(cell, some, ray)
        except KeyboardInterrupt:
            if owner.ended:
                say(f"the sweep ends: {owner.ended}")
            raise
    return list(zip(found, results, strict=True))


def kept_recipe(out: str) -> Recipe:
    """The recipe of a workspace's last sweep. Raises `FssError` if there was none."""
    store = Store(out)
    if not store.exists(RECIPE):
        raise FssError("no sweep was run here", where=store.url, mend="`fss sweep run` begins one")
    return Recipe.model_validate(store.read_json(RECIPE) | {"out": out})


def run_one(recipe: Recipe, *, method: str, fold: int, seed: int) -> RunResult:
    """One run of the recipe. `method` is a label of its comparison, "" for the only one that trains.

    Raises `FssError` for an unknown method or fold, or if the choice is not clear.
    """
    recipe = only_cell(recipe)
    labels = method_labels(recipe.methods)
    able = [x for x, m in zip(labels, recipe.methods, strict=True) if registry.method_class(m.name).trains]
    if not method and len(able) != 1:
        raise FssError("which method?", mend=f"give --method, one of {', '.join(labels)}")
    chosen = method or able[0]
    if chosen not in labels:
        raise FssError(f"the recipe has no method {chosen!r}", where=recipe.name, mend=f"methods: {', '.join(labels)}")
    sweep = recipe.sweep.model_copy(update={"folds": [fold], "seeds": [seed]})
    narrowed = {"methods": [recipe.methods[labels.index(chosen)]], "sweep": sweep}
    one = recipe.model_copy(update=narrowed)
    with cluster() as ray:
        return run_specs(one, plan_sweep(one), ray)[0]


def eval_bundle(recipe: Recipe, *, bundle: str, fold: int | None) -> RunResult:
    """Score any bundle on the recipe's data, in this process.

    Raises `FssError` if there is no bundle or training opened a photo of the test list.
    """
    read_bundle_info(bundle)
    return score_bundle(recipe, ensure_shards(recipe), bundle=bundle, fold=fold)[0]


def score_bundle(recipe: Recipe, shards: Shards, *, bundle: str, fold: int | None) -> tuple[RunResult, pa.Table]:
    """The same on shards that are there, with the counts of every episode (`EPISODE_SCORES`)."""
    info = read_bundle_info(bundle)
    method = MethodConfig(name=info.method, preset=info.preset, config=info.config, weights=info.weights,
                          sha256=info.sha256)
    spec = RunSpec(dataset=recipe.data.name, shards=shards.url, data_hash=shards.manifest.content_hash, fold=fold,
                   method=method)
    run = RunContext(spec=spec, runs=Workspace(recipe.out).runs, gpus=recipe.sweep.gpus_per_run)
    data = FoldData.open(shards.url, fold)
    with Bar("scoring", len(data.episodes(recipe.eval)), unit="episodes") as bar:
        return evaluate_bundle(run, scoring(recipe), data, bundle, told=bar.to)


def collect_results(recipe: Recipe) -> list[RunResult]:
    """The finished runs of a recipe, without running anything; missing ones carry the reason as `error`.

    Raises `FssError` if there are no shards, hence no runs.
    """
    recipe = only_cell(recipe)
    scored, runs = scoring(recipe), Workspace(recipe.out).runs
    shards = Shards(Workspace(recipe.out).shards(recipe.data.name))
    mixed = [Shards(Workspace(recipe.out).shards(m.data.name)) for m in recipe.mixture]
    specs = _specs(recipe, shards, recipe.sweep.folds or shards.folds, mixed)
    contexts = [RunContext(spec=s, runs=runs) for s in specs]
    return [read_finished(j, scored) or failed_result(j, scored, FssError(_why_missing(j))) for j in contexts]


def _why_missing(run: RunContext) -> str:
    store = Store(run.folder)
    if store.exists("error.json"):
        return str(store.read_json("error.json")["error"])
    return "not finished: run `fss sweep run`"


def scoring(recipe: Recipe) -> ScoringConfig:
    """How the recipe scores a run."""
    return ScoringConfig(config=recipe.eval, resamples=recipe.choose.resamples, seed=recipe.choose.seed)


def run_specs(recipe: Recipe, specs: Sequence[RunSpec], ray: Any) -> list[RunResult]:
    """Run what is not finished yet."""
    return _run_plans(recipe, [(MatrixCell("", recipe), specs)], ray, sweep=False)[0]


def _run_plans(recipe: Recipe, planned: Sequence[tuple[MatrixCell, Sequence[RunSpec]]], ray: Any, *,
               sweep: bool) -> list[list[RunResult]]:
    """The results of every cell's runs, those that were not finished being run together."""
    results: dict[tuple[str, str], RunResult] = {}
    plans = [PlannedRun(run, scoring(cell.recipe), cell.label) for cell, specs in planned
             for run in _contexts(cell.recipe, specs)]
    for plan in plans:
        if found := read_finished(plan.run, plan.scored):
            results[plan.cell, plan.name] = found
    if results:
        say(f"{len(results)} of {len(plans)} runs are finished already")
    for cell, specs in planned:
        left = [s for s in specs if (cell.label, s.name) not in results]
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
                       feature_pool=recipe.features.pool_bytes) for s in specs]


def _idle_latency(cell: MatrixCell, results: Sequence[RunResult], ray: Any) -> None:
    """Seconds a query, method by method, with nothing else running; measured once a bundle and way of measuring."""
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
    say("measuring latency on the idle machine")
    first = next(iter(bundles.values())).spec
    task = ray.remote(measure_latency).options(num_cpus=recipe.sweep.cpus_per_run, num_gpus=recipe.sweep.gpus_per_run)
    all_of_them = {n: r.bundle for n, r in bundles.items()}  # in one run, so that the figures compare
    measured = task.remote(all_of_them, first.shards, first.fold, recipe.eval, recipe.sweep.gpus_per_run)
    store.write_json(name, {n: {**found, **keys[n]} for n, found in ray.get(measured).items()})
