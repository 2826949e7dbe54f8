"""The runs of a search's trials: what is trained and scored on each fold, and where it is stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fss_models.errors import FssError
from fss_models.metrics import Counts, MethodCounts, interval, resampled_scores
from pipelines.base.storage import join
from pipelines.base.workspace import Workspace
from pipelines.config.hyperband import rung_steps
from pipelines.config.recipe import Recipe
from pipelines.config.run import RunSpec
from pipelines.config.train import SelectConfig, TrainConfig
from pipelines.data.ensure import ensure_mixture, ensure_shards, mixture_shares
from pipelines.data.folds import FoldData, resolve_base_learner, resolve_steps
from pipelines.evaluation.results import RunResult
from pipelines.evaluation.steps import draw_held_out_episodes, hold_out
from pipelines.evaluation.trial import TrialScoring, read_score
from pipelines.features.build import features_url
from pipelines.selection.search_space import SearchedMethod
from pipelines.selection.trials import FOLDER
from pipelines.sweeps.matrix import sweep_specs
from pipelines.training.context import RunContext


class TrialRuns:
    """The folds of a search with their held-out classes and rungs, from which the runs of every trial are made."""

    def __init__(self, recipe: Recipe) -> None:
        """Open the shards, which are built if they are missing.

        Raises `FssError` for a fold that does not exist, has too few base classes, or steps for too few rungs.
        """
        self.recipe, self.shards = recipe, ensure_shards(recipe)
        self.data_hash = self.shards.manifest.content_hash
        self._mixture = mixture_shares(recipe, ensure_mixture(recipe))
        known = self.shards.folds
        folds = recipe.search.folds or [f for f in recipe.sweep.folds if f in known] or known
        self.rungs: dict[int, tuple[int, ...]] = {}  # fold -> number of steps at each rung
        self._held_out: dict[int, tuple[int, ...]] = {}
        self.list_hashes: dict[int, str] = {}  # fold -> content hash of its list of held-out episodes
        for fold in folds:
            if fold not in known:
                raise FssError(f"there is no fold {fold}", where=recipe.data.name, hint=f"known folds: {known}")
            self._open(fold)
        url = join(recipe.out, FOLDER)
        steps = "-".join(str(s) for rungs in self.rungs.values() for s in rungs)
        self.folder = join(url, "runs", steps)  # checkpoints of other rungs would not pass through these
        self.scoring = TrialScoring.of(recipe.train, recipe.eval.batch, join(url, "scores"), recipe.choose.resamples)

    def _open(self, fold: int) -> None:
        data = FoldData.open(self.shards.url, fold)
        train = resolve_steps(self.recipe.train, self.shards, fold)
        self.rungs[fold] = rung_steps(self.recipe.search, train.steps)
        self._held_out[fold] = tuple(hold_out(data, train))
        episodes = draw_held_out_episodes(data, train)
        self.list_hashes[fold], self.episodes = episodes.sha256, len(episodes)

    @property
    def reference(self) -> tuple[int, ...]:
        """The steps of the rungs on the first fold."""
        return next(iter(self.rungs.values()))

    @property
    def held_out_names(self) -> dict[int, list[str]]:
        """Fold -> names of its held-out classes."""
        return {fold: [self.shards.classes[c].name for c in ids] for fold, ids in self._held_out.items()}

    def specs(self, method: SearchedMethod, values: Mapping[str, Any]) -> list[RunSpec]:
        """The runs of a trial, one for each fold. Each leaves out the held-out classes of its fold."""
        recipe = method.change_settings(values)
        seeds = recipe.sweep.model_copy(update={"seeds": recipe.sweep.seeds[:1]})
        trains: dict[int | None, TrainConfig] = {fold: recipe.train.model_copy(update={
            "steps": rungs[-1], "epochs": 0.0, "stop": 0, "selection": "none", "select": SelectConfig()})
            for fold, rungs in self.rungs.items()}
        found = sweep_specs(
            recipe.model_copy(update={"sweep": seeds}), shards=self.shards.url, data_hash=self.data_hash,
            trains=trains, mixture=self._mixture,
            base_learner=lambda one, fold: resolve_base_learner(recipe, one, self.shards, fold))
        return [s.model_copy(update={"holdout": self._held_out[s.fold or 0]}) for s in found]

    def context(self, spec: RunSpec, rung: int) -> RunContext:
        """A run of a trial that is trained up to a rung."""
        rungs, sweep = self.rungs[spec.fold or 0], self.recipe.sweep
        return RunContext(
            spec=spec, runs=self.folder, stop=rungs[rung], grid=rungs[:rung + 1], cpus=sweep.cpus_per_run,
            gpus=sweep.gpus_per_run, retries=sweep.retries, features=features_url(self.recipe),
            learners=Workspace(self.recipe.out).runs, feature_pool=self.recipe.features.pool_bytes)

    def result(self, spec: RunSpec, rung: int) -> RunResult:
        """The stored result of a run at a rung. Raises `FssError` if there is none."""
        found = read_score(spec, self.scoring, self.rungs[spec.fold or 0][rung])
        if found is None:
            raise FssError("the scores of a trial are gone", where=self.scoring.store(spec).url,
                           hint="run the same command again")
        return found

    def interval(self, counts: Sequence[tuple[int, Sequence[Counts]]]) -> tuple[float, float]:
        """The 95 % interval of a trial's mIoU, from the counts of each fold."""
        sample = MethodCounts.of(sorted(counts, key=lambda item: item[0]))
        return interval(resampled_scores(sample, resamples=self.recipe.choose.resamples, seed=0))
