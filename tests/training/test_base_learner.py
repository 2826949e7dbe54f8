"""The training of a base learner, without Ray: its labels, its batches, and resuming to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fss_models.augmentation import VOID
from fss_models.base_learner.build import build_base_learner
from fss_models.errors import FssError
from pipelines.base.storage import Store
from pipelines.bundles.weights import build_model
from pipelines.config.base_learner import BaseLearnerConfig, BaseLearnerSpec
from pipelines.config.method import MethodConfig
from pipelines.config.run import RunSpec
from pipelines.config.train import TrainConfig
from pipelines.data.folds import FoldData
from pipelines.data.shardset import Shards
from pipelines.training import base_learner as stage
from pipelines.training.base_learner import BaseLearnerRun, BasePhotos, give_base_learner, open_base_learner
from pipelines.training.context import RunContext
from pipelines.training.loop import optimise
from pipelines.training.task import WorkerRank
from tests.fixtures.training import KilledError

CONFIG = BaseLearnerConfig(steps=6, batch=3, checkpoint_every=2, log_every=2)


def spec_of(shards: str, **changes: object) -> BaseLearnerSpec:
    known = {"fold": 0, "preset": "debug", "seed": 0, "config": CONFIG}
    return BaseLearnerSpec(dataset="shapes", shards=shards, data_hash=Shards(shards).manifest.content_hash,
                           **(known | changes))


def train(run: BaseLearnerRun, folder: Path, *, die_at: int = 0) -> None:
    """Train in this process, from the last checkpoint in `folder`; `die_at` stops right after that step's row."""
    torch.set_num_threads(1)
    task, kept = open_base_learner(run, WorkerRank()), sorted(folder.glob("step-*"))

    def save(step: int, write: Callable[[Path], None]) -> None:
        (folder / f"step-{step:03d}").mkdir(parents=True)
        write(folder / f"step-{step:03d}")

    def log_row(step: int, row: dict[str, float]) -> None:
        if step == die_at:
            raise KilledError

    task.finish(optimise(task, worker=WorkerRank(), resume=kept[-1] if kept else None, save=save, log_row=log_row))


def test_labels_are_base_classes_alone(shapes_shards: str) -> None:
    """Numbers follow the fold's base classes; a novel class is background, here because its photos are kept."""
    spec = spec_of(shapes_shards, config=CONFIG.model_copy(update={"novel_images": "keep"}))
    photos, data = BasePhotos(spec), FoldData.open(shapes_shards, 0)
    assert list(photos.classes) == [c.name for c in data.base]
    novel, mixed = set(data.novel_ids), 0
    for row in photos.rows[:40]:
        _, label = photos.read(row)
        for c in row["class_ids"]:
            sample = data.shards.sample(row["image_id"], c)
            alone = sample.mask & ~np.any([data.shards.sample(row["image_id"], o).mask
                                           for o in row["class_ids"] if o != c] or [sample.mask & False], axis=0)
            number = 0 if c in novel else photos.classes[data.shards.classes[c].name] + 1
            assert set(label[alone].tolist()) <= {number}
            mixed += c in novel
    assert mixed, "no photo shows a novel class"
    assert not novel & {c for row in BasePhotos(spec_of(shapes_shards)).rows for c in row["class_ids"]}


@pytest.mark.parametrize("augment", ["semseg", "flip"])
def test_a_batch_depends_on_seed_and_step_alone(shapes_shards: str, augment: str) -> None:
    spec = spec_of(shapes_shards, config=CONFIG.model_copy(update={"augment": augment}))
    photos, resize = BasePhotos(spec), build_base_learner("debug", "", classes=2)[1].preprocessor
    whole = stage._batches(spec, photos, resize, 0)
    (first, _), (second, _) = next(whole), next(whole)
    again, _ = next(stage._batches(spec, photos, resize, 1))
    assert torch.equal(second.pixels, again.pixels)
    assert torch.equal(second.labels, again.labels)
    assert not torch.equal(first.pixels, second.pixels)
    assert set(first.labels.flatten().tolist()) <= {*range(len(photos.classes) + 1), VOID}
    assert bool((first.labels > 0).any())


def test_a_killed_training_ends_with_the_same_tensors(shapes_shards: str, tmp_path: Path) -> None:
    spec, found = spec_of(shapes_shards), []
    for name, die_at in (("whole", 0), ("killed", 4)):
        run = BaseLearnerRun(spec=spec, runs=str(tmp_path / name))
        if die_at:
            with pytest.raises(KilledError):
                train(run, tmp_path / name / "checkpoints", die_at=die_at)
            assert stage.read_base_learner(run.folder) is None
        train(run, tmp_path / name / "checkpoints")
        found.append(stage.read_base_learner(run.folder))
    one, other = found
    assert one and other and one.sha256 == other.sha256  # noqa: PT018
    assert other.loss == one.loss


def test_a_run_takes_its_base_learner_into_its_bundle(shapes_shards: str, tmp_path: Path) -> None:
    """All tensors of the base learner are in the trained state, whatever its number of classes; damage is seen."""
    method, runs = MethodConfig(name="bam", preset="debug"), str(tmp_path)
    spec = RunSpec(dataset="shapes", shards=shapes_shards, data_hash=Shards(shapes_shards).manifest.content_hash,
                   fold=0, method=method, train=TrainConfig(), base_learner=CONFIG)
    assert spec.learner is not None
    context, data = RunContext(spec=spec, runs=runs, learners=runs), FoldData.of(spec)
    model = build_model(method)
    assert model.untrained
    with pytest.raises(FssError, match="its base learner was not trained"):
        give_base_learner(context, model, data)
    run = BaseLearnerRun(spec=spec.learner, runs=runs)
    train(run, tmp_path / "checkpoints")
    give_base_learner(context, model, data)
    assert not model.untrained
    assert not model.keeps_random_parts
    tensors = stage.load(Store(run.folder).read_bytes(stage.TENSORS))
    state = model.trainable_state()
    assert all(torch.equal(v, state[f"backbone.{k}" if k.startswith("layer") else f"base_head.{k}"])
               for k, v in tensors.items())
    assert len(state["base_head.cls.4.weight"]) == len(data.base) + 1
    copy = build_model(method)
    copy.load_trainable_state(state)
    assert not copy.untrained
    Store(run.folder).write_bytes(stage.TENSORS, b"other")
    with pytest.raises(FssError, match="does not match"):
        give_base_learner(context, model, data)


def test_the_name_follows_from_what_decides_the_result(shapes_shards: str) -> None:
    spec = spec_of(shapes_shards)
    assert spec.name == spec_of(shapes_shards, config=CONFIG.model_copy(update={"log_every": 1})).name
    others = [spec_of(shapes_shards, **change) for change in (
        {"fold": 1}, {"seed": 1}, {"preset": "nano"}, {"holdout": (1,)},
        {"config": CONFIG.model_copy(update={"lr": 0.1})})]
    assert len({spec.name, *(o.name for o in others)}) == 6
