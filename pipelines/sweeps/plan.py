"""The runs of a recipe: planned and checked before anything is trained, and collected once they are finished."""

from __future__ import annotations

from collections.abc import Sequence

from fss_models import registry
from fss_models.errors import FssError
from fss_models.prompt_sampling import kinds_of
from pipelines.base.storage import Store
from pipelines.base.workspace import Workspace
from pipelines.bundles.weights import fetch
from pipelines.config.method import MethodConfig
from pipelines.config.recipe import Recipe
from pipelines.config.run import RunSpec, eval_digest, shipped_weights
from pipelines.data.ensure import ensure_mixture, ensure_shards, mixture_shares
from pipelines.data.folds import FoldData, list_hash, resolve_base_learner, resolve_steps
from pipelines.data.shardset import Shards
from pipelines.evaluation.drive import failed_result, read_finished, scoring_config
from pipelines.evaluation.results import RunResult
from pipelines.evaluation.steps import hold_out
from pipelines.sweeps.matrix import only_cell, sweep_specs
from pipelines.training.context import RunContext

ALL_CLASSES = -1  # value of sweep.folds: trained on all classes, without a fold


def plan_sweep(recipe: Recipe) -> list[RunSpec]:
    """The runs of a recipe. Its shards are built if they are missing.

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
            raise FssError(f"there is no fold {fold}", where=recipe.data.name, hint=f"known folds: {known}")
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
    """Raise `FssError` if weights that ship with fss were trained on test photos: evaluation would refuse the run."""
    test = {r["sha256"][:16]: r["file_name"] for r in shards.rows.values() if r["split"] == "test"}
    for method in recipe.methods:
        checked = registry.method_class(method.name).trains and not recipe.eval.list
        shipped = shipped_weights(method) if checked else None
        seen = [p for p in shipped.provenance.photos if p in test] if shipped else []
        if seen:
            raise FssError(f"the weights that ship for {method.preset} were trained on {len(seen)} of {len(test)} "
                           f"test photos (first: {test[seen[0]]})", where=recipe.data.name,
                           hint="make them train photos (data.split.file), or set methods.N.weights=random")


def _specs(recipe: Recipe, shards: Shards, folds: list[int], mixed: Sequence[Shards]) -> list[RunSpec]:
    chosen = [None if fold == ALL_CLASSES else fold for fold in folds]
    trains = {fold: resolve_steps(recipe.train, shards, fold) for fold in chosen}
    if recipe.train.selection == "base-holdout":
        for fold in chosen:
            hold_out(FoldData.open(shards.url, fold), trains[fold])
    specs = sweep_specs(recipe, shards=shards.url, data_hash=shards.manifest.content_hash, trains=trains,
                        mixture=mixture_shares(recipe, mixed),
                        base_learner=lambda method, fold: resolve_base_learner(recipe, method, shards, fold))
    return [s.model_copy(update={"selected_on": eval_digest(recipe.eval, list_hash(recipe.eval, s.fold))})
            if s.trains and s.train.selection == "published" else s for s in specs]


def _check_prompts(recipe: Recipe, method: MethodConfig) -> None:
    reads = registry.method_class(method.name).prompt_kinds
    for key, name in (("train", recipe.train.prompts), ("eval", recipe.eval.prompts)):
        if not kinds_of(name) <= reads:
            known = ", ".join(sorted(k.name.lower() for k in reads))
            raise FssError(f"{key}.prompts: method {method.name!r} cannot read {name!r} prompts", where=recipe.name,
                           hint=f"it can read: {known}")


def collect_results(recipe: Recipe) -> list[RunResult]:
    """The results of a recipe's runs. Nothing is run; a missing result has the reason as `error`.

    Raises `FssError` if there are no shards.
    """
    recipe = only_cell(recipe)
    scoring, runs = scoring_config(recipe), Workspace(recipe.out).runs
    shards = Shards(Workspace(recipe.out).shards(recipe.data.name))
    mixed = [Shards(Workspace(recipe.out).shards(m.data.name)) for m in recipe.mixture]
    specs = _specs(recipe, shards, recipe.sweep.folds or shards.folds, mixed)
    contexts = [RunContext(spec=s, runs=runs) for s in specs]
    return [read_finished(j, scoring) or failed_result(j, scoring, FssError(_why_missing(j))) for j in contexts]


def _why_missing(run: RunContext) -> str:
    store = Store(run.folder)
    if store.exists("error.json"):
        return str(store.read_json("error.json")["error"])
    return "not finished: run `fss sweep run`"
