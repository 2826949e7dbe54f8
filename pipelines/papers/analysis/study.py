"""The subject of an analysis: a bundle, the shards of a recipe, and the bundle's model before and after training."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fss_models.bundle import BundleInfo
from fss_models.errors import FssError
from fss_models.segmenter import Segmenter
from pipelines.base.progress import Bar
from pipelines.bundles.bundle import build_base_model, load_bundle, read_bundle_info
from pipelines.config.recipe import Recipe
from pipelines.data.ensure import ensure_shards
from pipelines.data.episodes import Episode, EpisodeList
from pipelines.data.folds import FoldData
from pipelines.data.schema import ClassInfo
from pipelines.data.shardset import ALL_FOLDS, Shards
from pipelines.evaluation.evaluate import refuse_seen_photos

MAP16 = "f2"  # name of the stride-16 features of methods that are based on SAM 2
_NOTHING = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True)
class Study:
    """One bundle on one recipe's data. Models are built at their first use."""

    recipe: Recipe
    url: str
    info: BundleInfo
    shards: Shards

    @staticmethod
    def open(recipe: Recipe, bundle: str) -> Study:
        """Read the bundle's description, and build the recipe's shards if they are missing.

        Raises `FssError` if there is no bundle or no data.
        """
        info = read_bundle_info(bundle)
        return Study(recipe, bundle, info, ensure_shards(recipe))

    @property
    def trained(self) -> bool:
        """Whether the bundle contains trained tensors."""
        return self.info.tensors_sha256 != _NOTHING

    @property
    def device(self) -> str:
        """The device of the models: "cuda" if the recipe gives its runs a GPU, else "cpu"."""
        return "cuda" if self.recipe.sweep.gpus_per_run else "cpu"

    @cached_property
    def adapted(self) -> Segmenter:
        """The bundle's model, with its trained tensors."""
        return load_bundle(self.url, self.device)[0]

    @cached_property
    def frozen(self) -> Segmenter:
        """A model of the bundle's method, preset, configuration and seed, without the trained tensors."""
        return build_base_model(self.info, self.url).to(self.device).eval()

    @property
    def models(self) -> dict[str, Segmenter]:
        """The models `frozen` and `adapted` by these names. Raises `FssError` if the bundle has no trained tensors."""
        if not self.trained:
            raise FssError("the bundle has no trained tensors, so there is no difference between its frozen and its "
                           "adapted model", where=self.url, hint="give the bundle of a method that trains")
        return {"frozen": self.frozen, "adapted": self.adapted}

    def open_unseen_fold(self, fold: int) -> FoldData:
        """Open a fold. Raises `FssError` if the bundle was trained on one of its novel classes."""
        data = FoldData.open(self.shards.url, fold)
        self.refuse_training_classes([c.name for c in data.tested], f"fold {fold} tests")
        return data

    def draw_unseen(self, fold: int) -> EpisodeList:
        """The fold's episodes. Raises `FssError` if the bundle was trained on one of their classes or photos."""
        episodes = self.open_unseen_fold(fold).episodes(self.recipe.eval)
        self.refuse_training_photos([i for e in episodes for i in (e.query, *e.supports)])
        return episodes

    def refuse_training_classes(self, names: Sequence[str], what: str) -> None:
        """Raise `FssError` if the bundle was trained on one of the classes.

        `what` completes the error's "which ...", such as "fold 0 tests".
        """
        known = sorted(set(names) & set(self.info.classes))
        if known:
            raise FssError(f"the bundle was trained on {known[0]!r}, which {what}", where=self.url,
                           hint="give a bundle whose training held these classes out")

    def refuse_training_photos(self, photos: Sequence[int]) -> None:
        """Raise `FssError` if the bundle's training opened one of the photos."""
        rows = tuple(Episode(i, ALL_FOLDS, -1, photo, ()) for i, photo in enumerate(photos))
        listed = EpisodeList(fold=ALL_FOLDS, shots=1, seed=0, family="photos", episodes=rows,
                             shards_hash=self.shards.manifest.content_hash)
        refuse_seen_photos(self.info.seen, self.shards, listed, self.url)

    @property
    def unknown_classes(self) -> list[ClassInfo]:
        """The dataset's classes that the bundle was not trained on; all classes if there are none such."""
        classes = self.shards.manifest.classes
        return [c for c in classes if c.name not in self.info.classes] or list(classes)


def draw_photos(shards: Shards, class_ids: Sequence[int], split: str, count: int, seed: int) -> list[int]:
    """Draw up to `count` different photos of a split, one of each class in turn. Returns their ids.

    Raises `FssError` if there is none.
    """
    rng, queues = np.random.default_rng([seed, len(class_ids)]), []
    for class_id in class_ids:
        queues.append([int(i) for i in rng.permutation(shards.photos_of(class_id, split))])
    found: dict[int, None] = {}
    for turn in range(max(map(len, queues), default=0)):
        for queue in queues:
            if turn < len(queue) and len(found) < count:
                found[queue[turn]] = None
    if not found:
        names = ", ".join(shards.classes[c].name for c in class_ids)
        raise FssError(f"no {split} photo shows any of: {names}", where=shards.url)
    return list(found)


@torch.no_grad()
def encode_stride16(model: Segmenter, shards: Shards, photos: Sequence[int], batch: int,
                    title: str) -> Iterator[tuple[list[int], Tensor]]:
    """Encode photos, `batch` at a time: yields image ids and their stride-16 features [n, C, g, g].

    Raises `FssError` for a method without such features.
    """
    with Bar(title, len(photos), unit="photos") as bar:
        for first in range(0, len(photos), batch):
            ids = list(photos[first:first + batch])
            features = model.encode(model.prepare([shards.pixels(i) for i in ids]).to(model.device))
            if MAP16 not in features.maps:
                raise FssError(f"method {model.method!r} has no stride-16 features of SAM 2's encoder",
                               hint="give a bundle of sansa, sam2_frozen or fssam")
            yield ids, features.maps[MAP16]
            bar.step(len(ids))


def record_cautions(study: Study) -> list[str]:
    """A note if the bundle does not record its training classes; else an empty list."""
    if study.info.classes or not study.trained:
        return []
    return ["The bundle does not record the classes it was trained on (an imported checkpoint), so it could not be "
            "checked that the tested classes were held out."]


def cautions(study: Study) -> list[str]:
    """Notes on what the figures cannot show: unrecorded classes, and a frozen model that is not the published SAM 2."""
    if not study.frozen.untrained:
        return record_cautions(study)
    return [*record_cautions(study), "There is no SAM 2 checkpoint for this preset: the frozen model's neck, memory "
            "and decoder have random values, over a trunk that is pretrained (nano) or also random (debug). Its "
            "figures are no verdict on SAM 2."]
