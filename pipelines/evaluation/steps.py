"""Choosing the number of steps: on held-out base classes or, as official codes do, on the test episodes themselves.

base-holdout   The run is trained without some base classes of the fold. Its model at each step of a grid is scored on
               episodes of these held-out classes. Then the run is trained anew on all base classes for the best
               number of steps. No novel class is seen: the episodes come from train photos that show none.
published      The run is trained once. Its model at each step of the grid is scored on the fold's test episodes, and
               the best one becomes the run's result. Official codes do so; the resulting score is too good.

Below the run's folder: `grid/` (tensors and score of each step, deleted afterwards) and `selection.json`, the record.
A selection that was killed resumes with the steps that are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pydantic import Field
from safetensors.torch import load

from fss_models.errors import FssError
from fss_models.metrics import score
from fss_models.segmenter import Segmenter
from pipelines.base.storage import Store, join
from pipelines.config.evaluate import EvalConfig
from pipelines.config.section import Section
from pipelines.config.train import TrainConfig
from pipelines.data.episodes import EpisodeList, draw_from
from pipelines.data.folds import FoldData
from pipelines.evaluation.results import table_counts
from pipelines.training.context import SELECTION_FILE, RunContext
from pipelines.training.grid import grid_file, grid_store
from pipelines.training.worker import write_bundle

FAMILY = "base-holdout"


class Selection(Section):
    """selection.json: how the number of steps was chosen."""

    policy: str
    steps: int  # the chosen number of steps
    grid: dict[int, float]  # number of steps -> mIoU
    held_out: dict[int, str] = Field(default_factory=dict)  # held-out classes, id -> name
    list_hash: str  # content hash of the list of episodes
    episodes: int  # number of episodes that each step was scored on


def grid_of(train: TrainConfig) -> tuple[int, ...]:
    """The steps at which the model is scored, evenly spaced; the last is `train.steps`."""
    points = min(train.select.points, train.steps)
    return tuple(train.steps * i // points for i in range(1, points + 1))


def hold_out(data: FoldData, train: TrainConfig) -> dict[int, list[int]]:
    """Held-out class -> its train photos that show no novel class. The draw depends on fold and seed alone.

    Raises `FssError` where the fold has too few base classes with enough such photos.
    """
    wanted, novel = train.select.classes, set(data.novel_ids)
    rows, shards = data.shards.rows, data.shards
    able: dict[int, list[int]] = {}
    for one in data.base:
        found = shards.without_copies(shards.photos_of(one.class_id, "train"))
        photos = [i for i in found if not novel.intersection(rows[i]["class_ids"])]
        if len(photos) > train.shots:
            able[one.class_id] = photos
    if wanted > len(able) or wanted >= len(data.base):
        raise FssError(f"cannot hold out {wanted} of {len(data.base)} base classes: {len(able)} have more than "
                       f"{train.shots} train photos without a novel class", where=f"fold {data.fold} of {shards.url}",
                       hint="lower train.select.classes or set train.selection=none")
    rng = np.random.default_rng([train.select.seed, _number(data.fold)])
    chosen = rng.permutation(sorted(able))[:wanted]
    return {int(c): able[int(c)] for c in sorted(chosen)}


def draw_held_out_episodes(data: FoldData, train: TrainConfig) -> EpisodeList:
    """Episodes of the held-out classes, drawn from train photos that show no novel class."""
    rng = np.random.default_rng([train.select.seed, _number(data.fold), train.shots])
    rows = draw_from(hold_out(data, train), fold=_number(data.fold) - 1, shots=train.shots,
                     episodes=train.select.episodes, rng=rng)
    return EpisodeList(fold=_number(data.fold) - 1, shots=train.shots, seed=train.select.seed, family=FAMILY,
                       episodes=rows, shards_hash=data.shards.manifest.content_hash)


def _number(fold: int | None) -> int:
    return 0 if fold is None else fold + 1


# ---- the runs of a selection --------------------------------------------------------------------------------------

def holdout_run(run: RunContext) -> RunContext:
    """The run's training without the held-out classes, in a folder of its own below the run's."""
    data = FoldData.of(run.spec)
    train = run.spec.train.model_copy(update={"selection": "none", "select": type(run.spec.train.select)()})
    spec = run.spec.model_copy(update={"train": train, "holdout": tuple(hold_out(data, run.spec.train))})
    return run.model_copy(update={"spec": spec, "runs": join(run.folder, "selection"), "key": run.spec.name,
                                  "grid": grid_of(run.spec.train), "stage": "selecting"})


def run_selection(run: RunContext, config: EvalConfig, *, train: Callable[[RunContext], None],
                  score: Callable[[RunContext, RunContext, EvalConfig], None]) -> Selection:
    """Choose the number of steps of `run` by `train.selection`; finished parts of a selection are not repeated.

    `train` trains a run to its end; `score` calls `score_grid` where it is to be executed.
    """
    base = run.spec.train.selection == "base-holdout"
    known = read_selection(run)
    if known and (base or Store(run.bundle).exists("bundle.json")):
        return known
    trained = holdout_run(run) if base else run.model_copy(update={"grid": grid_of(run.spec.train)})
    kept = grid_store(trained).exists(grid_file(trained.grid[-1]))
    if not (kept and Store(trained.folder).exists("history.json")):
        train(trained)
    score(run, trained, config)
    Store(trained.runs if base else grid_store(trained).url).delete()
    return _required(run)


def score_grid(run: RunContext, trained: RunContext, config: EvalConfig) -> None:
    """Score the model of `trained` at each step of the grid, write selection.json and, for `published`, the bundle."""
    data, train, model = FoldData.of(run.spec), run.spec.train, _built(run)
    if base := train.selection == "base-holdout":
        config = EvalConfig(shots=train.shots, episodes=train.select.episodes, seed=train.select.seed,
                            prompts=train.prompts, batch=config.batch)
    episodes = draw_held_out_episodes(data, train) if base else data.episodes(config)
    classes = sorted({*episodes.class_ids, *(c.class_id for c in data.tested if episodes.published_hash)})
    grid = {step: _scored(trained, step, model, data, episodes, config, classes) for step in trained.grid}
    steps = max(sorted(grid), key=lambda s: grid[s])  # the first of equals
    held = {c: data.shards.classes[c].name for c in trained.spec.holdout}
    record = Selection(policy=train.selection, steps=steps, grid=grid, held_out=held, list_hash=episodes.sha256,
                       episodes=len(episodes))
    Store(run.folder).write_json(SELECTION_FILE, record.model_dump(mode="json"))
    if not base:
        _write_chosen(run, trained, model, data, steps)


def _built(run: RunContext) -> Segmenter:
    from pipelines.bundles.weights import build_model

    model = build_model(run.spec.method, seed=run.spec.seed)
    return model.to("cuda" if run.gpus else "cpu").eval()


def _scored(trained: RunContext, step: int, model: Segmenter, data: FoldData, episodes: EpisodeList, config: EvalConfig,
            classes: Sequence[int]) -> float:
    """The mIoU of the model at a step of the grid. It is stored, so that a killed scoring resumes after it."""
    from pipelines.evaluation.evaluate import score_episodes

    store, name = grid_store(trained), f"step-{step:07d}.json"
    if not store.exists(name):
        model.load_trainable_state(load(store.read_bytes(grid_file(step))))
        before = trained.grid.index(step) * len(episodes)
        table, _ = score_episodes(model, data.shards, episodes, config, on_progress=lambda done: trained.track(
            "at_step", trained.label, before + done, "choosing"))
        found = score(table_counts(table, classes), list(classes))
        store.write_json(name, {"step": step, "miou": found.miou})
    miou = float(store.read_json(name)["miou"])
    trained.track("metrics", trained.label, {"select/miou": miou}, step)
    return miou


def _write_chosen(run: RunContext, trained: RunContext, model: Segmenter, data: FoldData, steps: int) -> None:
    model.load_trainable_state(load(grid_store(trained).read_bytes(grid_file(steps))))
    rows = Store(run.folder).read_json("history.json")
    write_bundle(run.model_copy(update={"stop": steps}), model, data, train_s=sum(r["seconds"] for r in rows))


# ---- files --------------------------------------------------------------------------------------------------------

def read_selection(run: RunContext) -> Selection | None:
    """The record of a finished selection, None where there is none."""
    store = Store(run.folder)
    return Selection.model_validate(store.read_json(SELECTION_FILE)) if store.exists(SELECTION_FILE) else None


def _required(run: RunContext) -> Selection:
    found = read_selection(run)
    if found is None:
        raise FssError("the selection left no record", where=run.folder, hint="run the same command again")
    return found


def describe_selection(found: Sequence[dict[str, Any]]) -> str:
    """One line on how the number of steps was chosen; `found` holds `details["selection"]` of the runs of a table."""
    policies = {s.get("policy", "none") for s in found}
    said = {"none": "fixed number of steps; no selection on novel classes",
            "published": "checkpoint chosen on the test episodes themselves, as published: the scores are too good"}
    counts = sorted({len(s["held_out"]) for s in found if s.get("policy") == "base-holdout"})
    said["base-holdout"] = (f"number of steps chosen on {' or '.join(map(str, counts))} held-out base classes a fold, "
                            "then trained on all base classes")
    return "; ".join(said[p] for p in sorted(policies)) or said["none"]
