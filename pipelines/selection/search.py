"""Hyper-parameter search with Ray Tune, scored on held-out base classes of a fold, never on novel classes.

A trial is one process. It trains without the held-out classes, as `train.selection=base-holdout` does, and is scored at
each step of that selection's grid; ASHA continues only the better third. Each score is written at once, into
`search/<recipe>/<trial>.json` of the workspace: a search that was killed reads it there when it is started again.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field, ValidationError

from fss_models import registry
from fss_models.errors import FssError
from fss_models.segmenter import Segmenter
from pipelines.base.cluster import cluster
from pipelines.base.outcome import error_line
from pipelines.base.progress import Bar
from pipelines.base.storage import Store, join
from pipelines.base.text_table import text_table
from pipelines.base.version import code_version
from pipelines.base.workspace import Workspace
from pipelines.config.evaluate import EvalConfig
from pipelines.config.recipe import Recipe
from pipelines.config.run import RunSpec, shipped_sha
from pipelines.config.section import Section
from pipelines.config.sweep import RangeConfig
from pipelines.config.train import TrainConfig
from pipelines.data.ensure import ensure_mixture, ensure_shards, mixture_shares
from pipelines.data.folds import FoldData, resolve_base_learner, resolve_steps
from pipelines.evaluation.steps import draw_held_out_episodes, grid_of, hold_out
from pipelines.sweeps.base_learners import ensure_base_learners
from pipelines.training.context import RunContext

ALLOWED = ("train.", "methods.0.config.")
FIXED = ("train.steps", "train.epochs", "train.stop", "train.selection", "train.select", "train.workers",
         "train.features", "train.shots", "train.prompts")
THIRD = 3


class SearchPoint(Section):
    """A score of a trial: mIoU on the held-out classes, a fraction, and its 95 % interval."""

    steps: int
    miou: float
    interval: tuple[float, float]


class Trial(Section):
    """One choice of settings with its scores so far."""

    values: dict[str, Any]
    points: list[SearchPoint] = Field(default_factory=list)
    error: str = ""

    @property
    def best(self) -> SearchPoint | None:
        """The trial's best score, None before the first."""
        return max(self.points, key=lambda p: p.miou, default=None)


class SearchResult(Section):
    """The content of `search/<recipe>.json`: trials, the best first."""

    recipe: str
    method: str
    fold: int
    held_out: list[str]  # names of the classes that trials are scored on
    list_hash: str
    episodes: int
    steps: int  # steps of a trial that is not stopped early
    trials: list[Trial]
    code: str

    @property
    def settings(self) -> str:
        """The best trial's settings as options of a command (`--set KEY=VALUE ...`)."""
        values = self.trials[0].values if self.trials and self.trials[0].best else {}
        return " ".join(f"--set {k}={json.dumps(v)}" for k, v in values.items())


@dataclass(frozen=True, kw_only=True)
class TrialInputs:
    """Inputs that all trials share: the recipe, the run to vary, and the folder for scores (`url`)."""

    recipe: Recipe
    spec: RunSpec
    url: str
    threads: int

    def change_settings(self, values: dict[str, Any]) -> RunSpec:
        """The run of a trial with these settings; it trains without the held-out classes."""
        recipe = change_settings(self.recipe, values)
        train = recipe.train.model_copy(update={
            "steps": self.spec.train.steps, "epochs": 0.0, "selection": "none", "select": type(recipe.train.select)()})
        return self.spec.model_copy(update={"method": recipe.methods[0], "train": train})

    def trial_name(self, values: dict[str, Any]) -> str:
        """File name of a trial; equal settings of an equal run give the same name."""
        content = json.dumps([self.spec.model_dump(mode="json"), values], sort_keys=True)
        return f"{hashlib.sha256(content.encode()).hexdigest()[:12]}.json"


def change_settings(recipe: Recipe, values: dict[str, Any]) -> Recipe:
    """The recipe with some settings changed. Raises `FssError` for an unknown setting or a value that does not fit."""
    raw = recipe.model_dump()
    for key, value in values.items():
        node: Any = raw
        *place, last = key.split(".")
        for part in place:
            node = node[int(part)] if isinstance(node, list) else node[part]
        node[last] = value
    try:
        made = Recipe.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place_of = ".".join(str(p) for p in first["loc"])
        raise FssError(f"search.space: {place_of}: {first['msg']}", where=recipe.name) from error
    registry.make_config(made.methods[0].name, made.methods[0].config)
    return made


def search(recipe: Recipe) -> SearchResult:
    """Try `search.trials` choices of settings; returns them, the best first, and writes `search/<recipe>.json`.

    Raises `FssError` for a space that is empty or has settings that cannot be searched, for several methods, and for
    several workers or kept features, which a trial does not support. A trial that fails has `error`.
    """
    _check(recipe)
    with cluster() as ray:
        inputs, data, train = _trial_inputs(recipe)
        ensure_base_learners(recipe, [inputs.spec], ray)
        episodes = draw_held_out_episodes(data, train)
        trials = _tune(recipe, inputs, grid_of(train))
    held = [data.shards.classes[c].name for c in hold_out(data, train)]
    trials.sort(key=lambda t: -(t.best.miou if t.best else -1.0))
    found = SearchResult(recipe=recipe.name, method=recipe.methods[0].name, fold=recipe.search.fold, held_out=held,
                         list_hash=episodes.sha256, episodes=len(episodes), steps=train.steps, trials=trials,
                         code=code_version())
    Store(join(recipe.out, "search")).write_json(f"{recipe.name}.json", found.model_dump(mode="json"))
    return found


def _check(recipe: Recipe) -> None:
    space = recipe.search.space
    if not space:
        raise FssError("search.space is empty", where=recipe.name,
                       hint="give one, such as --set 'search.space={train.lr: {log: [0.0001, 0.01]}}'")
    for key in space:
        if not key.startswith(ALLOWED) or key.startswith(FIXED):
            raise FssError(f"search.space: {key} cannot be searched", where=recipe.name,
                           hint="use settings below train and methods.0.config that do not change what is compared")
    if len(recipe.methods) != 1 or not registry.method_class(recipe.methods[0].name).trains:
        raise FssError("a search needs exactly one method that trains", where=recipe.name,
                       hint="set methods to that one")
    if recipe.train.workers > 1 or recipe.train.features != "off":
        raise FssError("`fss search` supports neither several workers nor kept features", where=recipe.name,
                       hint="set train.workers=1 and train.features=off")
    for key, values in space.items():
        for value in _edges(values):
            change_settings(recipe, {key: value})


def _edges(values: RangeConfig) -> list[Any]:
    return values.choice or list(values.uniform or values.log or ())


def _trial_inputs(recipe: Recipe) -> tuple[TrialInputs, FoldData, TrainConfig]:
    """The inputs of all trials, the data of the fold, and the training section by which classes are held out."""
    shards, fold = ensure_shards(recipe), recipe.search.fold
    data = FoldData.open(shards.url, fold)
    train = resolve_steps(recipe.train, shards, fold).model_copy(update={"selection": "base-holdout", "stop": 0})
    spec = RunSpec(dataset=recipe.data.name, shards=shards.url, data_hash=shards.manifest.content_hash, fold=fold,
                   method=recipe.methods[0], seed=recipe.sweep.seeds[0], train=train,
                   mixture=mixture_shares(recipe, ensure_mixture(recipe)), shipped=shipped_sha(recipe.methods[0]),
                   holdout=tuple(hold_out(data, train)),
                   base_learner=resolve_base_learner(recipe, recipe.methods[0], shards, fold))
    url = join(recipe.out, "search", recipe.name)
    threads = max(1, math.floor(recipe.sweep.cpus_per_run))
    return TrialInputs(recipe=recipe, spec=spec, url=url, threads=threads), data, train


def _tune(recipe: Recipe, inputs: TrialInputs, grid: tuple[int, ...]) -> list[Trial]:
    """Run the trials on the cluster and read the scores that they wrote."""
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.basic_variant import BasicVariantGenerator

    config, sweep = recipe.search, recipe.sweep
    asha = ASHAScheduler(time_attr="training_iteration", max_t=len(grid), grace_period=1, reduction_factor=THIRD)
    with tempfile.TemporaryDirectory() as folder, Bar("search", config.trials * len(grid), unit="scores") as bar:
        callback, takes = _progress(bar), {"cpu": sweep.cpus_per_run, "gpu": sweep.gpus_per_run}
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(_trial, inputs=inputs, grid=grid), takes),
            param_space={k: _domain(v, tune) for k, v in config.space.items()},
            tune_config=tune.TuneConfig(
                metric="miou", mode="max", num_samples=config.trials, scheduler=asha if config.stop_early else None,
                search_alg=BasicVariantGenerator(random_state=config.seed, max_concurrent=sweep.parallel)),
            run_config=tune.RunConfig(storage_path=folder, name="trials", verbose=0, callbacks=[callback]))
        results = tuner.fit()
    return [_read(inputs, results[i].config or {}, results[i].error) for i in range(len(results))]


def _domain(values: RangeConfig, tune: Any) -> Any:
    if values.choice:
        return tune.choice(values.choice)
    return tune.uniform(*values.uniform) if values.uniform else tune.loguniform(*(values.log or (0.0, 0.0)))


def _progress(bar: Bar) -> Any:
    from ray import tune

    class ScoreBar(tune.Callback):
        """Advances the bar by one for each score."""

        def on_trial_result(self, *args: Any, **kwargs: Any) -> None:
            bar.step()

    return ScoreBar()


def _read(inputs: TrialInputs, values: dict[str, Any], error: Exception | None) -> Trial:
    store, name = Store(inputs.url), inputs.trial_name(values)
    trial = Trial.model_validate(store.read_json(name)) if store.exists(name) else Trial(values=values)
    return trial.model_copy(update={"error": error_line(error)}) if error else trial


def _trial(config: dict[str, Any], inputs: TrialInputs, grid: tuple[int, ...]) -> None:
    """The function that Tune calls in a process of its own, with the settings of a trial."""
    from ray import tune

    run_trial(inputs, dict(config), grid, lambda point: tune.report(point.model_dump()))


def run_trial(inputs: TrialInputs, values: dict[str, Any], grid: tuple[int, ...],
              on_progress: Callable[[SearchPoint], None]) -> Trial:
    """Train and score one choice of settings. `on_progress` is called with every score, those of an earlier try first.

    Nothing is trained if all scores are already known.
    """
    store, name = Store(inputs.url), inputs.trial_name(values)
    trial = Trial.model_validate(store.read_json(name)) if store.exists(name) else Trial(values=values)
    points = [p for p in trial.points if p.steps in grid]
    for point in points:
        on_progress(point)
    if len(points) == len(grid):
        return trial
    known = {p.steps for p in points}

    def record(point: SearchPoint) -> None:
        if point.steps not in known:
            points.append(point)
            store.write_json(name, Trial(values=values, points=points).model_dump(mode="json"))
            on_progress(point)

    _train(inputs, values, grid, record)
    return Trial(values=values, points=points)


def _train(inputs: TrialInputs, values: dict[str, Any], grid: tuple[int, ...],
           on_score: Callable[[SearchPoint], None]) -> None:
    from pipelines.bundles.weights import build_model
    from pipelines.data.collate import square_side
    from pipelines.training.base_learner import give_base_learner
    from pipelines.training.loop import fit
    from pipelines.training.task import WorkerRank

    torch.set_num_threads(inputs.threads)
    spec, gpus = inputs.change_settings(values), inputs.recipe.sweep.gpus_per_run
    data, worker = FoldData.of(spec), WorkerRank(device="cuda" if gpus else "cpu")
    model = build_model(spec.method, seed=spec.seed)
    work = Workspace(inputs.recipe.out)
    give_base_learner(RunContext(spec=spec, runs=work.runs, learners=work.runs), model, data)
    side = square_side(model, decoded=True) if spec.train.augment == "none" else 0

    def score_step(step: int, trained: Segmenter) -> None:
        if step in grid:
            on_score(_score(inputs, trained, step))

    fit(spec, model, worker=worker, resume=None, save=lambda step, write: None, log_row=lambda step, row: None,
        on_step=score_step,
        open_stream=lambda position: data.stream(spec, position=position, rank=0, world=1, side=side))


def _score(inputs: TrialInputs, model: Segmenter, step: int) -> SearchPoint:
    """Score the model on the held-out classes. Its training and random state are not changed."""
    from fss_models.metrics import MethodCounts, interval, resampled_scores, score
    from pipelines.evaluation.evaluate import score_episodes
    from pipelines.evaluation.results import table_counts

    data, train = FoldData.open(inputs.spec.shards, inputs.spec.fold), inputs.spec.train
    episodes = draw_held_out_episodes(data, train)
    config = EvalConfig(shots=train.shots, episodes=train.select.episodes, seed=train.select.seed,
                        prompts=train.prompts, batch=inputs.recipe.eval.batch)
    with torch.random.fork_rng(devices=[] if model.device.type == "cpu" else [model.device]):
        table, _ = score_episodes(model.eval(), data.shards, episodes, config)
    model.train()
    counts = table_counts(table)
    spread = resampled_scores(MethodCounts.of([(0, [counts])]), resamples=inputs.recipe.choose.resamples, seed=0)
    return SearchPoint(steps=step, miou=score(counts, episodes.class_ids).miou, interval=interval(spread))


def format_search(found: SearchResult) -> str:
    """The trials as a table for people, the best first; mIoU in percent."""
    keys = list(found.trials[0].values) if found.trials else []
    head = [*keys, "steps", "mIoU", "95 % interval", "scored at", ""]
    rows = []
    for trial in found.trials:
        best = trial.best
        score = ["-"] * 4
        if best:
            low, high = best.interval
            score = [str(best.steps), f"{best.miou * 100:.1f}", f"{low * 100:.1f}-{high * 100:.1f}",
                     f"{len(trial.points)} steps"]
        rows.append([*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in trial.values.values()), *score,
                     trial.error])
    about = (f"Fold {found.fold}, {found.episodes} episodes of train photos of the held-out base classes "
             f"({', '.join(found.held_out)}). No novel class was seen.")
    table = text_table(rows, head=head, left=(len(head) - 1,))
    return "\n".join([table, "", about, f"best: {found.settings or 'none'}"])
