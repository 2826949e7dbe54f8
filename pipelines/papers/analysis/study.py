"""What an analysis looks at: a bundle, the shards of a recipe, and the same model before and after training."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fss_models.errors import FssError
from fss_models.segmenter import Segmenter
from pipelines.base.progress import Bar
from pipelines.bundles.bundle import BundleInfo, build_base_model, load_bundle, read_bundle_info
from pipelines.config.recipe import Recipe
from pipelines.data.ensure import ensure_shards
from pipelines.data.episodes import Episode, EpisodeList
from pipelines.data.folds import FoldData
from pipelines.data.schema import ClassInfo
from pipelines.data.shardset import ALL_FOLDS, Shards
from pipelines.evaluation.evaluate import refuse_seen_photos

MAP16 = "f2"  # what SAM 2 based methods call their stride-16 features
_NOTHING = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True)
class Study:
    """One bundle on one recipe's data. Models are built when first asked for."""

    recipe: Recipe
    url: str
    info: BundleInfo
    shards: Shards

    @staticmethod
    def open(recipe: Recipe, bundle: str) -> Study:
        """Raises `FssError` if there is no bundle or no data; shards are built if they are missing."""
        info = read_bundle_info(bundle)
        return Study(recipe, bundle, info, ensure_shards(recipe))

    @property
    def trained(self) -> bool:
        """Whether the bundle holds trained tensors at all."""
        return self.info.tensors_sha256 != _NOTHING

    @property
    def device(self) -> str:
        """Where the models are put: on the GPU if the recipe gives its runs one."""
        return "cuda" if self.recipe.sweep.gpus_per_run else "cpu"

    @cached_property
    def adapted(self) -> Segmenter:
        """The bundle's model."""
        return load_bundle(self.url, self.device)[0]

    @cached_property
    def frozen(self) -> Segmenter:
        """The same method, preset, configuration and seed, without what was trained."""
        return build_base_model(self.info, self.url).to(self.device).eval()

    @property
    def both(self) -> dict[str, Segmenter]:
        """`frozen` and `adapted`. Raises `FssError` if nothing was trained, so that there is nothing to compare."""
        if not self.trained:
            raise FssError(f"holds no trained tensors: {self.info.method!r} is the same frozen and adapted",
                           where=self.url, mend="give the bundle of a method that trains")
        return {"frozen": self.frozen, "adapted": self.adapted}

    def unseen(self, fold: int) -> FoldData:
        """A fold whose novel classes the bundle was not trained on. Raises `FssError` otherwise."""
        data = FoldData.open(self.shards.url, fold)
        self.refuse_trained([c.name for c in data.tested], f"fold {fold} tests")
        return data

    def refuse_trained(self, names: Sequence[str], what: str) -> None:
        """Raise `FssError` if the bundle was trained on one of the classes; `what` says what they are for."""
        known = sorted(set(names) & set(self.info.classes))
        if known:
            raise FssError(f"was trained on {known[0]!r}, which {what}", where=self.url,
                           mend="give the bundle that held these classes out")

    def refuse_seen(self, photos: Sequence[int]) -> None:
        """Raise `FssError` if training opened one of the photos."""
        rows = tuple(Episode(i, ALL_FOLDS, -1, photo, ()) for i, photo in enumerate(photos))
        listed = EpisodeList(fold=ALL_FOLDS, shots=1, seed=0, family="photos", episodes=rows,
                             shards_hash=self.shards.manifest.content_hash)
        refuse_seen_photos(self.info.seen, self.shards, listed, self.url)

    @property
    def unknown_classes(self) -> list[ClassInfo]:
        """The dataset's classes that the bundle was not trained on; all of them if it was trained on each."""
        classes = self.shards.manifest.classes
        return [c for c in classes if c.name not in self.info.classes] or list(classes)


def photos_of(shards: Shards, class_ids: Sequence[int], split: str, count: int, seed: int) -> list[int]:
    """Up to `count` different photos of a split, drawn class by class in turn. Raises `FssError` if there is none."""
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
def stride16(model: Segmenter, shards: Shards, photos: Sequence[int], batch: int,
             title: str) -> Iterator[tuple[list[int], Tensor]]:
    """Image ids and their stride-16 features [n, C, g, g], `batch` photos at a time.

    Raises `FssError` for a method without such features.
    """
    with Bar(title, len(photos), unit="photos") as bar:
        for first in range(0, len(photos), batch):
            ids = list(photos[first:first + batch])
            features = model.encode(model.prepare([shards.pixels(i) for i in ids]).to(model.device))
            if MAP16 not in features.maps:
                raise FssError(f"method {model.method!r} has no stride-16 features of SAM 2's encoder",
                               mend="give a bundle of sansa, sam2_frozen or fssam")
            yield ids, features.maps[MAP16]
            bar.step(len(ids))


def no_record(study: Study) -> list[str]:
    """What a reader must know where nothing says what the bundle was trained on."""
    if study.info.classes or not study.trained:
        return []
    return ["The bundle does not record the classes it was trained on (an imported checkpoint): nothing here can check "
            "that it never saw the ones tested."]


def cautions(study: Study) -> list[str]:
    """That, and where the frozen model is not SAM 2 as published."""
    if not study.frozen.untrained:
        return no_record(study)
    return [*no_record(study), "This preset has no SAM 2 checkpoint: the frozen model's neck, memory and decoder hold "
            "random values over a trunk that is pretrained (nano) or random too (debug). It is no verdict on SAM 2."]
