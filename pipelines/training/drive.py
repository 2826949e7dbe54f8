"""Ray tasks of a sweep: a light driver a run, the evaluation it ends with, and the idle latency measurement."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fss_models.errors import FssError
from pipelines.config import EvalConfig, Section
from pipelines.storage import Store, join
from pipelines.training.results import NO_EPISODES, RunResult, read_result, write_result
from pipelines.training.run import code_version, eval_digest
from pipelines.training.worker import Job, train_run, write_bundle

OVERLAYS = "overlays.png"  # in a run's folder
LATENCY_QUERIES, LATENCY_REPEATS = 12, 3


class Scored(Section):
    """How a run is scored."""

    config: EvalConfig
    resamples: int = 1000
    seed: int = 0


def drive(job: Job, scored: Scored) -> RunResult:
    """Train (where there is something to train) and evaluate one run. A failure is a result with `error`."""
    import ray

    try:
        if job.spec.trains and not _has_bundle(job):
            _train(job, scored, ray)
        score = ray.remote(evaluate_run).options(num_cpus=job.cpus, num_gpus=job.gpus, max_retries=job.retries)
        result: RunResult = ray.get(score.remote(job, scored))
    except Exception as error:
        return failed(job, scored, error)
    return result


def _train(job: Job, scored: Scored, ray: Any) -> None:
    """Train a run to its bundle, its number of steps being chosen first where its recipe says so."""
    from pipelines.training.select import run_selection, score_grid

    if job.spec.train.selection == "none":
        return train_run(job)
    task = ray.remote(_with_threads).options(num_cpus=job.cpus, num_gpus=job.gpus, max_retries=job.retries)
    chosen = run_selection(job, scored.config, train=train_run,
                           score=lambda *given: ray.get(task.remote(job.threads, score_grid, *given)))
    if job.spec.train.selection == "base-holdout":
        train_run(job.model_copy(update={"stop": chosen.steps}))


def _with_threads(threads: int, call: Callable[..., Any], *given: Any) -> Any:
    import torch

    torch.set_num_threads(threads)
    return call(*given)


def failed(job: Job, scored: Scored, error: BaseException) -> RunResult:
    """The result of a run that could not be finished: what went wrong, in one line."""
    return RunResult(run=job.spec.name, spec=job.spec, eval_digest=eval_digest(scored.config), error=one_line(error),
                     passing=_may_pass(error))


def _may_pass(error: BaseException) -> bool:
    """Whether a process or machine was lost; what a run's own code raises, Ray Train has tried again already."""
    from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, RayTaskError, WorkerCrashedError
    from ray.train import ControllerError

    if isinstance(error, RayTaskError):
        return _may_pass(error.cause) if isinstance(error.cause, Exception) else False
    return isinstance(error, (ControllerError, NodeDiedError, OutOfMemoryError, RayActorError, WorkerCrashedError))


def one_line(error: BaseException) -> str:
    """The cause in a person's words: the innermost error of whatever Ray wrapped around it.

    Of several workers' errors a mistake comes first: the others only lost the one that made it.
    """
    for worker in sorted(getattr(error, "worker_failures", {}).values(), key=lambda w: not isinstance(w, FssError)):
        return one_line(worker)
    cause = getattr(error, "cause", None) or error.__cause__
    if isinstance(cause, BaseException) and not isinstance(error, FssError):
        return one_line(cause)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else ""
    return text if isinstance(error, FssError) else f"{type(error).__name__}: {text}"[:400]


def _has_bundle(job: Job) -> bool:
    return Store(job.bundle).exists("bundle.json")


def evaluate_run(job: Job, scored: Scored) -> RunResult:
    """Score the run's bundle on its fold's list and write the result. Without training, its bundle is made here."""
    import torch

    from pipelines.training.data import FoldData
    from pipelines.weights import build_model

    torch.set_num_threads(job.threads)
    spec = job.spec
    data = FoldData.of(spec)
    if not spec.trains and not _has_bundle(job):
        method = spec.method
        model = build_model(method.name, method.preset, method.config, weights=method.weights, sha256=method.sha256,
                            seed=spec.seed)
        write_bundle(job, model, data, train_s=0.0)
    result, table = evaluate_bundle(job, scored, data, job.bundle, draw=True)
    write_result(job.folder, result, table)
    job.tell("artifact", job.label, join(job.folder, OVERLAYS))
    return result


def evaluate_bundle(
    job: Job, scored: Scored, data: Any, bundle: str, *, told: Callable[[int], None] | None = None, draw: bool = False
) -> tuple[RunResult, Any]:
    """Load a bundle, score it on the fold's list; `told` hears how many episodes are done, else the tracker does.

    With `draw` some episodes are drawn into the run's folder.
    On a list file (`eval.list`) all the fold's classes count, one without any episode as IoU 0, which is how the
    published evaluations score; a list drawn here is scored on the classes that it has. The classes without an episode
    are named in `details`. Raises `FssError` if training opened one of the photos.
    """
    from pipelines.bundle import load_bundle
    from pipelines.training.evaluate import refuse_seen_photos, score_episodes
    from pipelines.training.overlays import overlay_sheet
    from pipelines.training.select import read_selection

    model, info = load_bundle(bundle, "cuda" if job.gpus else "cpu")
    episodes = data.episodes(scored.config)
    refuse_seen_photos(info.seen, data.shards, episodes, bundle)
    table, took = score_episodes(model, data.shards, episodes, scored.config,
                                 told=told or (lambda done: job.tell("at_step", job.label, done, "scoring")))
    if draw:
        sheet = overlay_sheet(model.cpu(), data.shards, episodes, scored.config, table)
        Store(job.folder).write_bytes(OVERLAYS, sheet)
    found = set(episodes.class_ids)
    tested = [c for c in data.tested if c.class_id in found or episodes.published]
    chosen = read_selection(job) if bundle == job.bundle else None
    details = {**took, "selection": chosen.model_dump(mode="json") if chosen else {}, "not_scored": episodes.dropped,
               "shots": episodes.shots, NO_EPISODES: [c.name for c in data.tested if c.class_id not in found]}
    facts = {"eval_digest": eval_digest(scored.config, episodes.published), "list_hash": episodes.sha256,
             "bundle": bundle, "bundle_id": info.bundle_id, "untrained": info.untrained,
             "train_s": info.provenance.get("train_s", 0.0),
             "trainable_params": sum(p.numel() for p in model.parameters() if p.requires_grad),
             "images_per_s": took["images_per_s"], "code": code_version(), "details": details}
    return summarise(job, scored, tested, table, facts), table


def summarise(job: Job, scored: Scored, classes: Any, table: Any, facts: dict[str, Any]) -> RunResult:
    """Scores and interval of an evaluation."""
    from fss_models.metrics import MethodCounts, interval, resampled_scores, score
    from pipelines.training.results import table_counts

    counts = table_counts(table, [c.class_id for c in classes])
    scores = score(counts, [c.class_id for c in classes])
    spread = resampled_scores(MethodCounts.of([(0, [counts])]), resamples=scored.resamples, seed=scored.seed)
    names = {c.class_id: c.name for c in classes}
    return RunResult(
        run=job.spec.name, spec=job.spec, episodes=len(table),
        classes={str(c): n for c, n in names.items()}, miou=scores.miou, fb_iou=scores.fb_iou,
        interval=list(interval(spread)), per_class={names[c]: v for c, v in scores.per_class.items()}, **facts)


def finished(job: Job, scored: Scored) -> RunResult | None:
    """The run's result where it is done already. Raises `FssError` for an `eval.list` that cannot be read."""
    from pipelines.training.data import list_hash

    return read_result(job.folder, job.spec, eval_digest(scored.config, list_hash(scored.config, job.spec.fold)))


def measure_latency(bundles: dict[str, str], shards_url: str, fold: int | None, config: EvalConfig,
                    gpus: float) -> dict[str, Any]:
    """Speed and peak memory of each bundle, all on the same queries in one idle process. Label -> figures."""
    import os

    import torch

    from pipelines.data.episodes import load_episode
    from pipelines.training.data import FoldData
    from pipelines.training.speed import measure_speed

    threads = os.cpu_count() or 1
    torch.set_num_threads(threads)
    data = FoldData.open(shards_url, fold)
    chosen = list(data.episodes(config))[:LATENCY_QUERIES]
    samples = [load_episode(data.shards, e) for e in chosen]
    figures = measure_speed(bundles, samples, device="cuda" if gpus else "cpu", batch=config.batch,
                            repeats=LATENCY_REPEATS)
    return {label: {**found, "threads": threads} for label, found in figures.items()}
