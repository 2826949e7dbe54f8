"""A trial of a search on one fold: a run that leaves out some base classes and is scored on them at each rung.

`drive_trial` trains the run up to its `stop`, from the checkpoint of the rung before, and scores it. The scores are
stored apart from the run, whose folder can be deleted once the trial has ended.
"""

from __future__ import annotations

from typing import Any

from safetensors.torch import load

from pipelines.base.ray_stage import run_task
from pipelines.base.storage import Store, join
from pipelines.base.version import code_version
from pipelines.config.evaluate import EvalConfig
from pipelines.config.run import RunSpec, eval_digest
from pipelines.config.train import SelectConfig, TrainConfig
from pipelines.data.folds import FoldData
from pipelines.evaluation.drive import ScoringConfig, failed_result, summarise
from pipelines.evaluation.results import RunResult, table_counts
from pipelines.evaluation.steps import draw_held_out_episodes
from pipelines.training.context import RunContext
from pipelines.training.grid import grid_file, grid_store
from pipelines.training.worker import train_run

POLICY = "search"  # in `details["selection"]` of a trial's results


class TrialScoring(ScoringConfig):
    """How the run of a trial is scored: on episodes of the held-out classes, which `select` decides."""

    select: SelectConfig
    url: str  # of the folder with the scores of all trials

    @staticmethod
    def of(train: TrainConfig, batch: int, url: str, resamples: int) -> TrialScoring:
        """The scoring of trials of a training section; `batch` episodes are segmented at a time."""
        config = EvalConfig(shots=train.shots, episodes=train.select.episodes, seed=train.select.seed,
                            prompts=train.prompts, batch=batch)
        return TrialScoring(config=config, resamples=resamples, select=train.select, url=url)

    @property
    def digest(self) -> str:
        """8 hex digits: a hash of what decides the scores of a run."""
        return eval_digest(self.config, self.select.model_dump_json())

    def store(self, spec: RunSpec) -> Store:
        """The folder with the scores of a run."""
        return Store(join(self.url, spec.name))


def read_score(spec: RunSpec, scoring: TrialScoring, steps: int) -> RunResult | None:
    """The result of a trial's run after `steps` steps; None if it was not scored yet, or in another way."""
    store, name = scoring.store(spec), f"step-{steps:07d}.json"
    if not store.exists(name):
        return None
    found = RunResult.model_validate(store.read_json(name))
    return found if found.eval_digest == scoring.digest else None


def read_table(spec: RunSpec, scoring: TrialScoring, steps: int) -> Any:
    """The `EPISODE_SCORES` of a run of a trial after `steps` steps."""
    return scoring.store(spec).read_table(f"step-{steps:07d}.parquet")


def drive_trial(run: RunContext, scoring: TrialScoring) -> RunResult:
    """Train a trial's run up to `run.stop`, score it at the steps of its grid. A failure is a result with `error`."""
    import ray

    try:
        left = [s for s in run.grid if read_score(run.spec, scoring, s) is None]
        if any(not grid_store(run).exists(grid_file(s)) for s in left) or _history_ends(run) < max(left, default=0):
            train_run(run)
        return run_task(ray, score_trial, run, scoring, **run.worker_resources, retries=run.retries)
    except Exception as error:
        return failed_result(run, scoring, error)


def _history_ends(run: RunContext) -> int:
    """The last step of the run's history, which is written behind the last file of a grid; 0 without one."""
    store = Store(run.folder)
    rows = store.read_json("history.json") if store.exists("history.json") else []
    return max((row["step"] for row in rows), default=0)


def score_trial(run: RunContext, scoring: TrialScoring) -> RunResult:
    """Score the run at the steps of its grid that have no score yet. Returns the result of the last one."""
    import torch

    from pipelines.bundles.weights import build_model

    torch.set_num_threads(run.threads)
    model = build_model(run.spec.method, seed=run.spec.seed).to("cuda" if run.gpus else "cpu").eval()
    found = None
    for steps in run.grid:
        found = read_score(run.spec, scoring, steps)
        if found is None:
            model.load_trainable_state(load(grid_store(run).read_bytes(grid_file(steps))))
            found = _score(run, scoring, model, steps)
    if found is None:
        raise ValueError("the run has an empty grid")
    return found


def _score(run: RunContext, scoring: TrialScoring, model: Any, steps: int) -> RunResult:
    from pipelines.evaluation.evaluate import score_episodes

    spec = run.spec
    data = FoldData.open(spec.shards, spec.fold)  # with its held-out classes, which `FoldData.of` leaves out
    episodes = draw_held_out_episodes(data, spec.train.model_copy(update={"select": scoring.select}))
    table, took = score_episodes(model, data.shards, episodes, scoring.config,
                                 on_progress=lambda done: run.track("at_step", run.label, done, "scoring"))
    rows = Store(run.folder).read_json("history.json")
    facts = {"eval_digest": scoring.digest, "list_hash": episodes.sha256, "code": code_version(),
             "train_s": sum(r["seconds"] for r in rows if r["step"] <= steps), "images_per_s": took["images_per_s"],
             "details": {**took, "selection": {"policy": POLICY, "steps": steps}}}
    classes = [data.shards.classes[c] for c in sorted(set(episodes.class_ids))]
    result = summarise(run, scoring, classes, table, facts)
    store, name = scoring.store(spec), f"step-{steps:07d}"
    store.write_table(f"{name}.parquet", table)
    store.write_json(f"{name}.json", result.model_dump(mode="json"))
    return result


def counts_of(spec: RunSpec, scoring: TrialScoring, result: RunResult) -> Any:
    """The episode counts of a result of a trial's run."""
    return table_counts(read_table(spec, scoring, result.steps), [int(c) for c in result.classes])
