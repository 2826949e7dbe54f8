"""Ray tasks of a sweep: the driver of a run, the evaluation at its end, and the latency measured when idle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipelines.base.limits import usable_cores
from pipelines.base.outcome import error_line, unwrapped
from pipelines.base.ray_stage import run_task
from pipelines.base.storage import Store, join
from pipelines.base.version import code_version
from pipelines.config.evaluate import EvalConfig
from pipelines.config.recipe import Recipe
from pipelines.config.run import eval_digest
from pipelines.config.section import Section
from pipelines.evaluation.results import NO_EPISODES, RunResult, read_result, write_result
from pipelines.training.context import RunContext
from pipelines.training.worker import train_run, write_bundle

OVERLAYS = "overlays.png"  # in a run's folder
LATENCY_QUERIES, LATENCY_REPEATS = 12, 3


class ScoringConfig(Section):
    """How a run is scored: the evaluation, and the bootstrap of its interval."""

    config: EvalConfig
    resamples: int = 1000
    seed: int = 0


def scoring_config(recipe: Recipe) -> ScoringConfig:
    """The `ScoringConfig` of a recipe."""
    return ScoringConfig(config=recipe.eval, resamples=recipe.choose.resamples, seed=recipe.choose.seed)


def drive_run(run: RunContext, scoring: ScoringConfig) -> RunResult:
    """Train a run, unless its method has nothing to train, and evaluate it. A failure is a result with `error`."""
    import ray

    try:
        if run.spec.trains and not _has_bundle(run):
            _train(run, scoring, ray)
        return run_task(ray, evaluate_run, run, scoring, **run.worker_resources, retries=run.retries)
    except Exception as error:
        return failed_result(run, scoring, error)


def _train(run: RunContext, scoring: ScoringConfig, ray: Any) -> None:
    """Train a run and write its bundle. Its number of steps is chosen first where `train.selection` says so."""
    from pipelines.evaluation.steps import run_selection, score_grid

    if run.spec.train.selection == "none":
        train_run(run)
        return
    chosen = run_selection(run, scoring.config, train=train_run,
                           score=lambda *args: run_task(ray, _with_threads, run.threads, score_grid, *args,
                                                        **run.worker_resources, retries=run.retries))
    if run.spec.train.selection == "base-holdout":
        train_run(run.model_copy(update={"stop": chosen.steps}))


def _with_threads(threads: int, call: Callable[..., Any], *args: Any) -> Any:
    import torch

    torch.set_num_threads(threads)
    return call(*args)


def failed_result(run: RunContext, scoring: ScoringConfig, error: BaseException) -> RunResult:
    """The result of a run that failed, with the cause in one line."""
    return RunResult(run=run.spec.name, spec=run.spec, eval_digest=eval_digest(scoring.config),
                     error=error_line(error), retryable=is_retryable(error))


def is_retryable(error: BaseException) -> bool:
    """Whether a process or a machine was lost. Errors of a run's own code were already retried by Ray Train."""
    from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, WorkerCrashedError
    from ray.train import ControllerError

    lost = (ControllerError, NodeDiedError, OutOfMemoryError, RayActorError, WorkerCrashedError)
    return isinstance(unwrapped(error), lost)


def _has_bundle(run: RunContext) -> bool:
    return Store(run.bundle).exists("bundle.json")


def evaluate_run(run: RunContext, scoring: ScoringConfig) -> RunResult:
    """Score the run's bundle on its fold's episode list and write the result.

    The bundle of a method without training is written here.
    """
    import torch

    from pipelines.bundles.weights import build_model
    from pipelines.data.folds import FoldData

    torch.set_num_threads(run.threads)
    spec = run.spec
    data = FoldData.of(spec)
    if not spec.trains and not _has_bundle(run):
        write_bundle(run, build_model(spec.method, seed=spec.seed), data, train_s=0.0)
    result, table = evaluate_bundle(run, scoring, data, run.bundle, draw_overlays=True)
    write_result(run.folder, result, table)
    run.track("artifact", run.label, join(run.folder, OVERLAYS))
    return result


def evaluate_bundle(run: RunContext, scoring: ScoringConfig, data: Any, bundle: str, *,
                    on_progress: Callable[[int], None] | None = None,
                    draw_overlays: bool = False) -> tuple[RunResult, Any]:
    """Load a bundle and score it on the fold's episode list; returns the result and its `EPISODE_SCORES`.

    `on_progress` is called with the number of episodes done; without it the tracker is. With `draw_overlays` a picture
    of some episodes is written into the run's folder.

    With a list file (`eval.list`) every class of the fold counts, and a class without episodes has IoU 0, as in the
    published evaluations. With a list drawn here only the classes of its episodes count. `details` names the classes
    without episodes. Raises `FssError` if training opened one of the photos.
    """
    from fss_models.execution import chosen_precision
    from pipelines.bundles.bundle import load_bundle
    from pipelines.evaluation.evaluate import refuse_seen_photos, score_episodes
    from pipelines.evaluation.overlays import overlay_sheet
    from pipelines.evaluation.steps import read_selection

    model, info = load_bundle(bundle, "cuda" if run.gpus else "cpu")
    episodes = data.episodes(scoring.config)
    refuse_seen_photos(info.seen, data.shards, episodes, bundle)
    table, took = score_episodes(
        model, data.shards, episodes, scoring.config,
        on_progress=on_progress or (lambda done: run.track("at_step", run.label, done, "scoring")))
    if draw_overlays:
        sheet = overlay_sheet(model.cpu(), data.shards, episodes, scoring.config, table)
        Store(run.folder).write_bytes(OVERLAYS, sheet)
    found = set(episodes.class_ids)
    tested = [c for c in data.tested if c.class_id in found or episodes.published_hash]
    chosen = read_selection(run) if bundle == run.bundle else None
    details = {**took, "selection": chosen.model_dump(mode="json") if chosen else {}, "not_scored": episodes.dropped,
               "shots": episodes.shots, NO_EPISODES: [c.name for c in data.tested if c.class_id not in found]}
    facts = {"eval_digest": eval_digest(scoring.config, episodes.published_hash), "list_hash": episodes.sha256,
             "bundle": bundle, "bundle_id": info.bundle_id, "untrained": info.untrained,
             "train_s": info.provenance.get("train_s", 0.0),
             "trainable_params": sum(p.numel() for p in model.parameters() if p.requires_grad),
             "images_per_s": took["images_per_s"], "code": code_version(),
             "precision": chosen_precision(scoring.config.precision, model.device), "details": details}
    return summarise(run, scoring, tested, table, facts), table


def summarise(run: RunContext, scoring: ScoringConfig, classes: Any, table: Any, facts: dict[str, Any]) -> RunResult:
    """The result of an evaluation: mIoU with its interval, FB-IoU, and the IoU of each class, besides `facts`."""
    from fss_models.metrics import MethodCounts, interval, resampled_scores, score
    from pipelines.evaluation.results import table_counts

    counts = table_counts(table, [c.class_id for c in classes])
    scores = score(counts, [c.class_id for c in classes])
    spread = resampled_scores(MethodCounts.of([(0, [counts])]), resamples=scoring.resamples, seed=scoring.seed)
    names = {c.class_id: c.name for c in classes}
    return RunResult(
        run=run.spec.name, spec=run.spec, episodes=len(table),
        classes={str(c): n for c, n in names.items()}, miou=scores.miou, fb_iou=scores.fb_iou,
        interval=list(interval(spread)), per_class={names[c]: v for c, v in scores.per_class.items()}, **facts)


def read_finished(run: RunContext, scoring: ScoringConfig) -> RunResult | None:
    """The run's result, None where it is not finished. Raises `FssError` for an `eval.list` that cannot be read."""
    from pipelines.data.folds import list_hash

    return read_result(run.folder, run.spec, eval_digest(scoring.config, list_hash(scoring.config, run.spec.fold)))


def measure_latency(bundles: dict[str, str], shards_url: str, fold: int | None, config: EvalConfig,
                    gpus: float) -> dict[str, Any]:
    """Label -> speed and peak memory of a bundle, all measured on the same queries in one idle process."""
    import torch

    from pipelines.data.episodes import load_episode
    from pipelines.data.folds import FoldData
    from pipelines.evaluation.speed import measure_speed

    threads = usable_cores()
    torch.set_num_threads(threads)
    data = FoldData.open(shards_url, fold)
    chosen = list(data.episodes(config))[:LATENCY_QUERIES]
    samples = [load_episode(data.shards, e) for e in chosen]
    figures = measure_speed(bundles, samples, device="cuda" if gpus else "cpu", batch=config.batch,
                            repeats=LATENCY_REPEATS, precision=config.precision)
    return {label: {**found, "threads": threads} for label, found in figures.items()}
