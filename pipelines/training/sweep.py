"""`run_sweep`: every (method, fold, seed) trained and scored, as many at a time as the machine has room for.

Each run is a driver task that takes no CPU; it starts its workers only when a place is free, so nothing waits for a
resource that something else in the sweep holds. Runs that are finished are left alone, killed ones go on from their
last checkpoint, failed ones are recorded and tried again by the next command.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from fss_models import registry
from fss_models.errors import FssError
from fss_models.prompt_sampling import kinds_of
from pipelines.bundle import read_bundle_info
from pipelines.cluster import cluster
from pipelines.config import MethodConfig, Recipe
from pipelines.data.shardset import Shards
from pipelines.features.build import ensure_features, features_url
from pipelines.progress import Bar, say
from pipelines.storage import Store
from pipelines.tracking import Tracker, spool_folder, tracking_uri
from pipelines.training.data import FoldData, ensure_mixture, ensure_shards, list_hash, resolved, shares
from pipelines.training.drive import Scored, drive, evaluate_bundle, failed, finished, measure_latency
from pipelines.training.results import RunResult, untested
from pipelines.training.run import RunSpec, code_version, eval_digest, method_labels, sweep_specs
from pipelines.training.select import hold_out
from pipelines.training.worker import Job
from pipelines.weights import fetch
from pipelines.workspace import Workspace

ALL_CLASSES = -1  # as a fold: none is held out


def plan_sweep(recipe: Recipe) -> list[RunSpec]:
    """The runs of a recipe, its shards being there (they are built if not).

    Raises `FssError` for folds, methods, settings, presets and weight files that do not exist, and for prompts that a
    method cannot read.
    """
    for method in recipe.methods:
        registry.make_config(method.name, method.config)
        registry.check_preset(method.name, method.preset)
        _check_prompts(recipe, method)
        fetch(method.weights, method.sha256)
    shards = ensure_shards(recipe)
    known = shards.folds
    folds = recipe.sweep.folds or known
    for fold in folds:
        if fold not in (*known, ALL_CLASSES):
            raise FssError(f"there is no fold {fold}", where=recipe.data.name, mend=f"folds: {known}")
    return _specs(recipe, shards, folds, ensure_mixture(recipe))


def _specs(recipe: Recipe, shards: Shards, folds: list[int], mixed: Sequence[Shards]) -> list[RunSpec]:
    chosen = [None if fold == ALL_CLASSES else fold for fold in folds]
    trains = {fold: resolved(recipe.train, shards, fold) for fold in chosen}
    if recipe.train.selection == "base-holdout":
        for fold in chosen:
            hold_out(FoldData.open(shards.url, fold), trains[fold])
    specs = sweep_specs(recipe, shards=shards.url, data_hash=shards.manifest.content_hash, trains=trains,
                        mixture=shares(recipe, mixed))
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

    Raises `FssError` for a mistake in the recipe; a run that fails is a result, not an exception.
    """
    with cluster() as ray:
        specs = plan_sweep(recipe)
        results = run_specs(recipe, specs, ray)
        _idle_latency(recipe, results, ray)
    return results


def run_one(recipe: Recipe, *, method: str, fold: int, seed: int) -> RunResult:
    """One run of the recipe. `method` is a label of its comparison, "" for the only one that trains.

    Raises `FssError` for an unknown method or fold, or if the choice is not clear.
    """
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
    job = Job(spec=spec, runs=Workspace(recipe.out).runs, gpus=recipe.sweep.gpus_per_run)
    data = FoldData.open(shards.url, fold)
    with Bar("scoring", len(data.episodes(recipe.eval)), unit="episodes") as bar:
        return evaluate_bundle(job, scoring(recipe), data, bundle, told=bar.to)


def collect_results(recipe: Recipe) -> list[RunResult]:
    """The finished runs of a recipe, without running anything; missing ones carry the reason as `error`.

    Raises `FssError` if there are no shards, hence no runs.
    """
    scored, runs = scoring(recipe), Workspace(recipe.out).runs
    shards = Shards(Workspace(recipe.out).shards(recipe.data.name))
    mixed = [Shards(Workspace(recipe.out).shards(m.data.name)) for m in recipe.mixture]
    specs = _specs(recipe, shards, recipe.sweep.folds or shards.folds, mixed)
    jobs = [Job(spec=s, runs=runs) for s in specs]
    return [finished(j, scored) or failed(j, scored, FssError(_why_missing(j))) for j in jobs]


def _why_missing(job: Job) -> str:
    store = Store(job.folder)
    if store.exists("error.json"):
        return str(store.read_json("error.json")["error"])
    return "not finished: run `fss sweep run`"


def scoring(recipe: Recipe) -> Scored:
    """How the recipe scores a run."""
    return Scored(config=recipe.eval, resamples=recipe.choose.resamples, seed=recipe.choose.seed)


def run_specs(recipe: Recipe, specs: Sequence[RunSpec], ray: Any) -> list[RunResult]:
    """Run what is not finished yet."""
    scored = scoring(recipe)
    runs = Workspace(recipe.out).runs
    jobs = {s.name: Job(spec=s, runs=runs, cpus=recipe.sweep.cpus_per_run, gpus=recipe.sweep.gpus_per_run,
                        retries=recipe.sweep.retries, features=features_url(recipe),
                        feature_pool=recipe.features.pool_bytes) for s in specs}
    done = {n: r for n, j in jobs.items() if (r := finished(j, scored))}
    todo = [j for n, j in jobs.items() if n not in done]
    if done:
        say(f"{len(done)} of {len(jobs)} runs are finished already")
    if recipe.train.features != "off" and any(j.spec.trains for j in todo):
        ensure_features(recipe, [j.spec for j in todo], ray)
    if todo:
        parallel = _parallel(recipe, ray, len(todo))
        threads = max(1, (os.cpu_count() or 1) // parallel)
        with tracking(recipe, ray) as tracker:
            todo = [j.model_copy(update={"threads": threads, "tracker": tracker}) for j in todo]
            _open_runs(recipe, specs, todo, tracker)
            for result in _all(todo, scored, parallel, ray, tracker):
                done[result.run] = result
                _record(tracker, result, runs)
            tracker.end.remote(_sweep_key(recipe, specs))
    return [done[s.name] for s in specs]


def _parallel(recipe: Recipe, ray: Any, runs: int) -> int:
    """How many runs at a time: the recipe's number, else what fits. Raises `FssError` if not even one fits."""
    have = ray.cluster_resources()
    need = {"CPU": recipe.sweep.cpus_per_run, "GPU": recipe.sweep.gpus_per_run}
    for kind, amount in need.items():
        if amount > have.get(kind, 0.0):
            raise FssError(f"a run asks for {amount:g} {kind} but the cluster has {have.get(kind, 0.0):g}",
                           mend=f"lower sweep.{kind.lower()}s_per_run")
    room = min(int(have[k] / a) for k, a in need.items() if a)
    return max(1, min(recipe.sweep.parallel or room, runs))


@contextmanager
def tracking(recipe: Recipe, ray: Any) -> Iterator[Any]:
    """The sweep's tracking actor, on this machine (its spool is here). Says so if entries could not be delivered."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(Tracker).options(num_cpus=0, scheduling_strategy=here).remote(
        tracking_uri(recipe), recipe.project_name, str(spool_folder(recipe)))
    try:
        yield actor
    finally:
        if reason := ray.get(actor.close.remote()):
            say(f"tracking: {reason}; entries wait in {spool_folder(recipe)} for the next command")
        ray.kill(actor)


def _sweep_key(recipe: Recipe, specs: Sequence[RunSpec]) -> str:
    digest = hashlib.sha256("\n".join(s.name for s in specs).encode()).hexdigest()[:8]
    return f"sweep-{recipe.name}-{digest}"


def _open_runs(recipe: Recipe, specs: Sequence[RunSpec], todo: Sequence[Job], tracker: Any) -> None:
    parent = _sweep_key(recipe, specs)
    tracker.run.remote(parent, params={"runs": len(specs), "recipe": recipe.name}, tags={"fss.code": code_version()})
    for job in todo:
        tags = {"fss.data": job.spec.data_hash, "fss.code": code_version(), "fss.method": job.spec.method.name}
        tracker.run.remote(job.spec.name, parent=parent, params=job.spec.params, tags=tags)


def _all(todo: Sequence[Job], scored: Scored, parallel: int, ray: Any, tracker: Any) -> Iterator[RunResult]:
    """Results as runs end, at most `parallel` under way, with a bar over all steps and episodes."""
    waiting = list(reversed(todo))
    under_way: dict[Any, Job] = {}
    task = ray.remote(drive).options(num_cpus=0, max_retries=0)
    total = sum(j.spec.steps + scored.config.episodes for j in todo)
    with Bar(f"sweep ({len(todo)} runs, {parallel} at a time)", total, unit="steps") as bar:
        finished_steps = 0
        while waiting or under_way:
            while waiting and len(under_way) < parallel:
                job = waiting.pop()
                under_way[task.remote(job, scored)] = job
            ready, _ = ray.wait(list(under_way), num_returns=1, timeout=1.0)
            for ref in ready:
                job = under_way.pop(ref)
                finished_steps += job.spec.steps + scored.config.episodes
                yield _outcome(ref, job, scored, ray)
            steps = ray.get(tracker.progress.remote())
            now = finished_steps + sum(steps.get(j.spec.name, 0) for j in under_way.values())
            bar.to(now, f"{len(waiting) + len(under_way)} runs left")


def _outcome(ref: Any, job: Job, scored: Scored, ray: Any) -> RunResult:
    try:
        result: RunResult = ray.get(ref)
    except Exception as error:  # the driver's process died
        return failed(job, scored, error)
    return result


def _record(tracker: Any, result: RunResult, runs: str) -> None:
    """A result in the tracking store and, if it failed, on screen and in the run's folder."""
    store = Store(runs)
    if result.error:
        say(f"{result.run} failed: {result.error}")
        store.write_json(f"{result.run}/error.json", {"error": result.error})
        tracker.tags.remote(result.run, {"fss.error": result.error})
        tracker.end.remote(result.run, "FAILED")
        return
    store.delete(f"{result.run}/error.json")
    if line := untested(result):
        say(line)
    figures = {"miou": result.miou, "fb_iou": result.fb_iou, "images_per_s": result.images_per_s,
               "train_s": result.train_s, "miou_low": result.interval[0], "miou_high": result.interval[1]}
    figures |= {f"iou/{name}": value for name, value in result.per_class.items()}
    tracker.metrics.remote(result.run, figures, result.spec.steps)
    tracker.tags.remote(result.run, {"fss.list": result.list_hash, "fss.bundle": result.bundle_id,
                                     "fss.untrained": result.untrained})
    tracker.end.remote(result.run)


def _idle_latency(recipe: Recipe, results: Sequence[RunResult], ray: Any) -> None:
    """Seconds a query, method by method, with nothing else running; measured once a bundle."""
    labels = dict(zip([m.model_dump_json() for m in recipe.methods], method_labels(recipe.methods), strict=True))
    bundles: dict[str, RunResult] = {}
    for result in results:
        if not result.error:
            bundles.setdefault(labels[result.spec.method.model_dump_json()], result)
    store = Store(Workspace(recipe.out).url)
    known = store.read_json("latency.json") if store.exists("latency.json") else {}
    new = {n: r.bundle for n, r in bundles.items() if known.get(n, {}).get("bundle_id") != r.bundle_id}
    if not new:
        return
    say("measuring latency on the idle machine")
    first = next(iter(bundles.values())).spec
    task = ray.remote(measure_latency).options(num_cpus=recipe.sweep.cpus_per_run, num_gpus=recipe.sweep.gpus_per_run)
    all_of_them = {n: r.bundle for n, r in bundles.items()}  # in one run, so that the figures compare
    measured = task.remote(all_of_them, first.shards, first.fold, recipe.eval, recipe.sweep.gpus_per_run)
    store.write_json("latency.json", ray.get(measured))
