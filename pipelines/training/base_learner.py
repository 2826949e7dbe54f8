"""The training of a base learner: whole photos and the base class of every pixel, on the training engine.

Below the run's folder: base.safetensors, its tensors, and base.json, which is written last and says what they are.
Several methods read them; a run takes its own copy into its bundle.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from fss_models.augmentation import VOID, Augmentation
from fss_models.base_learner.build import build_base_learner
from fss_models.base_learner.learner import BaseLearner, LabelledPhotos
from fss_models.errors import FssError
from fss_models.opencv_augmentation import SemsegAugmentation
from fss_models.preprocess import Preprocessor
from pipelines.base.storage import Store, join
from pipelines.bundles.weights import fetch
from pipelines.config.base_learner import BaseLearnerSpec
from pipelines.config.section import Section
from pipelines.data.class_names import find_counterparts
from pipelines.data.folds import FoldData
from pipelines.data.shardset import Shards, cropped, masks_of
from pipelines.training.context import BaseRun, RunContext
from pipelines.training.state import History
from pipelines.training.task import TrainingTask, WorkerRank

if TYPE_CHECKING:
    from fss_models.segmenter import Segmenter

TENSORS, INFO = "base.safetensors", "base.json"
ORDER, CHANGES = 1, 2  # streams of random numbers: order of the photos, their augmentation
UNUSED = VOID - 1  # a label that no class has


class BaseLearnerInfo(Section):
    """The content of base.json. `photos`: sha256 (first 16 digits) of every photo that the training opened."""

    spec: BaseLearnerSpec
    sha256: str  # of base.safetensors
    classes: dict[str, int]  # class name -> its number, from 0
    photos: list[str]
    steps: int
    train_s: float
    loss: float  # mean over the last window


class BaseLearnerRun(BaseRun):
    """The run of a base learner."""

    spec: BaseLearnerSpec


def open_base_learner(run: BaseLearnerRun, worker: WorkerRank) -> TrainingTask:
    """The task of a base learner. At its end its files are written, and their description is returned.

    Raises `FssError` for an ImageNet file that does not fit and a fold without base classes.
    """
    spec = run.spec
    photos = BasePhotos(spec)
    torch.manual_seed(spec.seed)
    model, trunk = build_base_learner(spec.preset, fetch(spec.config.weights), classes=len(photos.classes),
                                      side=spec.config.side, head_factor=spec.config.head_factor)
    return TrainingTask(
        name=spec.name, identity={"run": spec.name}, seed=spec.seed, train=spec.train, steps=spec.config.steps,
        model=model, section="base_learner.",
        batches=lambda position, step: _batches(spec, photos, trunk.preprocessor, step),
        finish=lambda history: _write(run, model, photos, history))


class BasePhotos:
    """The photos that a base learner learns from, and the base class of each of their pixels."""

    def __init__(self, spec: BaseLearnerSpec) -> None:
        """Raises `FssError` for a fold without base classes or photos, and for more classes than labels."""
        data = FoldData.of(spec)
        self.classes = {c.name: number for number, c in enumerate(data.base)}
        self._labels = {c.class_id: number + 1 for number, c in enumerate(data.base)}
        self._shards = data.shards
        self.rows = data.train_rows(spec.config.novel_images)
        if not self.rows:
            raise FssError("no photo to train a base learner on", where=spec.name,
                           hint="set base_learner.novel_images=keep, or use another fold")
        if len(self.classes) >= UNUSED:
            raise FssError(f"a base learner tells at most {UNUSED - 1} classes apart, the fold has {len(self.classes)}",
                           where=spec.name, hint="use a dataset with fewer classes, or another method")

    def read(self, row: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Photo [H, W, 3] uint8 and labels [H, W] uint8: 0 no base class, 1 ... n, 255 void.

        Where classes overlap, the smaller one is in front.
        """
        photo = self._shards.photo(row["image_id"])
        height, width = photo["height"], photo["width"]
        label = np.zeros((height, width), np.uint8)
        found = {a["class_id"]: masks_of(a["instances"], photo["void_rle"], height, width)
                 for a in photo["annotations"]}
        for _, void in found.values():
            label[void] = VOID
        for class_id, (mask, _) in sorted(found.items(), key=lambda item: (-int(item[1][0].sum()), item[0])):
            label[mask] = self._labels.get(class_id, 0)
        (label,) = cropped(photo.get("crop"), label)
        return self._shards.pixels(row["image_id"]), label


def _batches(spec: BaseLearnerSpec, photos: BasePhotos, resize: Preprocessor, step: int
             ) -> Generator[tuple[LabelledPhotos, None]]:
    """Each step's photos and their changes: functions of (seed, step), so that no position is kept."""
    config, count = spec.config, len(photos.rows)
    augment = SemsegAugmentation(crop=resize.side, scale=config.augment_scale) if config.augment == "semseg" else None
    orders: dict[int, np.ndarray] = {}
    while True:
        draws = random.Random(int(np.random.default_rng([spec.seed, CHANGES, step]).integers(2**63)))
        pixels, labels = [], []
        for place in range(step * config.batch, (step + 1) * config.batch):
            epoch = place // count
            if epoch not in orders:
                orders = {epoch: np.random.default_rng([spec.seed, ORDER, epoch]).permutation(count)}
            image, label = _changed(*photos.read(photos.rows[orders[epoch][place % count]]), augment, draws)
            pixels.append(resize([image]).pixels[0])
            labels.append(_label_square(label, resize.side))
        yield LabelledPhotos(pixels=torch.stack(pixels), labels=torch.stack(labels)), None
        step += 1


def _changed(image: np.ndarray, label: np.ndarray, augment: Augmentation | None, draws: random.Random
             ) -> tuple[np.ndarray, np.ndarray]:
    if augment is None:
        return (image[:, ::-1].copy(), label[:, ::-1]) if draws.random() < 0.5 else (image, label)
    # The augmentation keeps what is labelled 1 inside the crop. A base learner's crop has no such object.
    label = np.where(label == 1, UNUSED, label).astype(np.uint8)
    image, label = augment(image.astype(np.float32), label, draws)
    return np.rint(image).clip(0, 255).astype(np.uint8), np.where(label == UNUSED, 1, label)


def _label_square(label: np.ndarray, side: int) -> Tensor:
    """Labels [H, W] -> [side, side] int64, by nearest neighbour."""
    rows, columns = ((np.arange(side) * n // side) for n in label.shape)
    return torch.from_numpy(label[rows][:, columns].astype(np.int64))


def _write(run: BaseLearnerRun, model: BaseLearner, photos: BasePhotos, history: History) -> BaseLearnerInfo:
    content = save(model.cpu().trainable_state())
    info = BaseLearnerInfo(
        spec=run.spec, sha256=hashlib.sha256(content).hexdigest(), classes=photos.classes, steps=run.spec.config.steps,
        photos=sorted({row["sha256"][:16] for row in photos.rows}), train_s=history.seconds,
        loss=history.rows[-1]["loss"])
    store = Store(run.folder)
    store.delete(INFO)  # else it could stand beside tensors that it does not describe
    store.write_bytes(TENSORS, content)
    store.write_json(INFO, info.model_dump(mode="json"))
    return info


# ---- reading ------------------------------------------------------------------------------------------------------

def read_base_learner(folder: str) -> BaseLearnerInfo | None:
    """What a base learner's folder (a URL) holds; None where it is not finished."""
    store = Store(folder)
    return BaseLearnerInfo.model_validate(store.read_json(INFO)) if store.exists(INFO) else None


def base_learner_of(run: RunContext) -> BaseLearnerInfo | None:
    """The base learner that a run builds on, None where it needs none. Raises `FssError` where it is missing."""
    spec = run.spec.learner
    if spec is None:
        return None
    folder = join(run.learners, spec.name)
    found = read_base_learner(folder)
    if found is None:
        store = Store(folder)
        why = f": {store.read_json('error.json')['error']}" if store.exists("error.json") else ""
        raise FssError(f"its base learner was not trained{why}", where=folder, hint="run `fss sweep run` again")
    return found


def give_base_learner(run: RunContext, model: Segmenter, data: FoldData) -> None:
    """Load a run's base learner into its model, where it needs one. Classes of its mixture are known by their names.

    Raises `FssError` where it is missing, damaged or of another preset.
    """
    found = base_learner_of(run)
    if found is None:
        return
    folder = join(run.learners, found.spec.name)
    content = Store(folder).read_bytes(TENSORS)
    if hashlib.sha256(content).hexdigest() != found.sha256:
        raise FssError(f"{TENSORS} does not match {INFO}", where=folder, hint="delete the folder and run again")
    numbers = dict(found.classes)
    for part, share in zip(data.parts(run.spec)[1:], run.spec.mixture, strict=True):
        numbers = _counterparts(found.classes, part.shards, share.means) | numbers
    model.load_base_learner(load(content), numbers)


def _counterparts(classes: Mapping[str, int], shards: Shards, means: Mapping[str, str]) -> dict[str, int]:
    """The numbers of another dataset's classes that mean the same as one of `classes`, by their names there."""
    names = shards.class_names
    return {other: number for name, number in classes.items()
            for other in find_counterparts([name], names, means).values()}
