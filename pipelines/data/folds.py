"""The data of one fold: its classes, the training stream, the photos that training opens, the test list."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from fss_models import registry
from fss_models.errors import FssError
from pipelines.config.base_learner import BaseLearnerConfig, BaseLearnerSpec
from pipelines.config.evaluate import EvalConfig
from pipelines.config.method import MethodConfig
from pipelines.config.recipe import Recipe
from pipelines.config.run import RunSpec
from pipelines.config.train import TrainConfig
from pipelines.data.class_names import find_counterparts
from pipelines.data.episodes import EpisodeList, episode_list, join_lists
from pipelines.data.mixture import MixedStream
from pipelines.data.published import bind, read_list
from pipelines.data.schema import ClassInfo
from pipelines.data.shardset import ALL_FOLDS, Shards
from pipelines.data.stream import EpisodeStream, usable_blocks


@dataclass(frozen=True)
class FoldData:
    """One fold of a dataset: base classes are trained, novel classes tested. If `fold` is None, all classes are base.

    `hidden`: further classes (id -> name) that training must not see: the counterparts of another dataset's novel
    classes. `holdout`: base classes left out of a training in order to choose its number of steps.
    """

    shards: Shards
    fold: int | None
    hidden: Mapping[int, str] = field(default_factory=dict)
    holdout: frozenset[int] = frozenset()

    @staticmethod
    def of(spec: RunSpec | BaseLearnerSpec) -> FoldData:
        """The data of a run, with its held-out classes.

        Raises `FssError` as `open` does, and for shards that are no longer those that the run was planned with.
        """
        data = FoldData.open(spec.shards, spec.fold)
        _check_content(data, spec.data_hash)
        return replace(data, holdout=frozenset(spec.holdout))

    @staticmethod
    def open(url: str, fold: int | None) -> FoldData:
        """A fold of the shards at `url`. Raises `FssError` for missing shards and for a fold that has no classes."""
        shards = Shards(url)
        known = shards.folds
        if fold is not None and fold not in known:
            raise FssError(f"there is no fold {fold}", where=url, hint=f"folds: {', '.join(map(str, known))}")
        return FoldData(shards, fold)

    @property
    def base(self) -> list[ClassInfo]:
        """The classes that training may use."""
        return [c for c in self.shards.manifest.classes
                if (self.fold is None or c.fold != self.fold) and c.class_id not in {*self.hidden, *self.holdout}]

    @property
    def tested(self) -> list[ClassInfo]:
        """The classes that the fold is scored on: its novel classes, or all classes if `fold` is None (a refit)."""
        return [c for c in self.shards.manifest.classes if self.fold is None or c.fold == self.fold]

    @property
    def novel_ids(self) -> list[int]:
        """Ids of the classes that training must not see, sorted: novel, hidden and held-out ones."""
        return sorted({*self.hidden, *self.holdout, *(c.class_id for c in self.tested if self.fold is not None)})

    def avoided_classes(self, novel_images: str) -> set[int]:
        """Ids of the classes whose photos training must not open.

        With `novel_images="drop"` these are all of `novel_ids`, else the held-out classes only: selection tests these.
        """
        return set(self.novel_ids) if novel_images == "drop" else set(self.holdout)

    @property
    def hidden_names(self) -> list[str]:
        """The names of the classes `novel_ids`, in the same order."""
        names = {c.class_id: c.name for c in self.shards.manifest.classes} | dict(self.hidden)
        return [names[c] for c in self.novel_ids]

    def parts(self, spec: RunSpec) -> list[FoldData]:
        """This dataset and the others of the run's mixture. Counterparts of its novel classes are hidden in the others.

        A class that was dropped here is in no fold, so its counterparts are hidden too. Raises `FssError` for shards of
        the mixture that do not record the ids of their dropped classes or are not those that the run was planned with,
        and for `means` of unknown classes.
        """
        others = [(FoldData.open(m.shards, None), m.means) for m in spec.mixture]
        for (other, means), share in zip(others, spec.mixture, strict=True):
            _check_content(other, share.data_hash)
            if unknown := sorted(means.keys() - set(other.shards.class_names.values())):
                raise FssError(f"mixture: means names the class {unknown[0]!r}, which this dataset does not have",
                               where=other.shards.url)
        novel = [self.shards.classes[c].name for c in sorted(self.holdout)]
        if self.fold is not None:
            novel += [*(c.name for c in self.tested), *self.shards.manifest.dropped_classes]
        if not novel:
            return [self, *(o for o, _ in others)]
        return [self, *(replace(o, hidden=find_counterparts(novel, o.shards.class_names, means))
                        for o, means in others)]

    def stream(self, spec: RunSpec, *, position: Any, rank: int, world: int,
               side: int = 0) -> EpisodeStream | MixedStream:
        """The training episodes of one worker (`rank` of `world`), from all datasets of the run.

        side: side in pixels of square samples; 0: whole photos. position: where to go on, None for the start.
        A further dataset of which nothing may be used, as all its classes are novel, is left out.
        """
        batch = spec.train.batch
        if not spec.mixture:
            return self._episodes_of(spec, side, batch, rank, world, position)
        own, *others = self.parts(spec)
        used = [(own, 1 - sum(m.weight for m in spec.mixture)), *(
            (other, m.weight) for other, m in zip(others, spec.mixture, strict=True)
            if other._has_episodes(spec.train.novel_images))]
        return MixedStream([partial(s._episodes_of, spec, side, world, rank, world) for s, _ in used],
                           [weight for _, weight in used], batch=batch, seed=spec.seed, world=world, position=position)

    def _has_episodes(self, novel_images: str) -> bool:
        """Whether a base class has two training photos that may be used."""
        blocks = usable_blocks(self.shards, [c.class_id for c in self.base], self.avoided_classes(novel_images))
        photos: Counter[int] = Counter()
        for block in blocks:
            photos[block.class_id] += len(block.rows)
        return any(count > 1 for count in photos.values())

    def _episodes_of(self, spec: RunSpec, side: int, batch: int, rank: int, world: int, position: Any) -> EpisodeStream:
        t = spec.train
        return EpisodeStream(
            self.shards.url, classes=[c.class_id for c in self.base], novel=self.avoided_classes(t.novel_images),
            shots=t.shots, targets=t.targets, batch=batch, seed=spec.seed, rank=rank, world=world,
            pool_bytes=t.pool_bytes, position=position, sampler=t.sampler, decode=t.features == "off",
            pixel_bytes=t.pixel_bytes, side=side)

    def train_photos(self, novel_images: str) -> list[str]:
        """The first 16 hex digits of the sha256 of every photo that training may open, sorted."""
        return sorted({row["sha256"][:16] for row in self.train_rows(novel_images)})

    def train_rows(self, novel_images: str) -> list[dict[str, Any]]:
        """The index rows of the photos that training may open: photos of base classes without an avoided class."""
        base, rows = {c.class_id for c in self.base}, self.shards.rows
        avoid = self.avoided_classes(novel_images)
        blocks = (b for b in self.shards.block_index.to_pylist() if b["class_id"] in base)
        photos = (rows[i] for i in dict.fromkeys(i for b in blocks for i in b["image_ids"]))
        return [row for row in photos if not avoid.intersection(row["class_ids"])]

    def episodes(self, config: EvalConfig) -> EpisodeList:
        """The fixed test list of the fold: the list that `eval.list` names, else the one stored beside the shards.

        A name with {fold} means one list per fold. A refit on all classes has none of them, so it is scored on the list
        beside the shards. Raises `FssError` for a list of another fold or of images that the shards do not have.
        """
        fold = ALL_FOLDS if self.fold is None else self.fold
        if url := _list_url(config, self.fold):
            return self._published(url, fold)
        return join_lists([episode_list(self.shards, fold=fold, shots=config.shots, episodes=config.episodes,
                                        seed=config.seed + draw) for draw in range(config.draws)])

    def _published(self, url: str, fold: int) -> EpisodeList:
        listed = read_list(url)
        if listed.fold != fold:
            raise FssError(f"this is a list of fold {listed.fold}, not {fold}", where=url,
                           hint="write {fold} in place of the number in eval.list, or run that fold alone")
        bound, tested = bind(self.shards, listed, where=url), {c.class_id for c in self.tested}
        if other := sorted(set(bound.class_ids) - tested):
            name = self.shards.classes[other[0]].name
            raise FssError(f"the list tests {len(other)} classes that are not in fold {fold} of these shards "
                           f"(first: {name})", where=url,
                           hint="use a list and shards that split the classes by the same rule and shot")
        return bound


def _list_url(config: EvalConfig, fold: int | None) -> str:
    """The URL of the fold's published list, "" if none is used."""
    if fold is None and "{fold}" in config.list:
        return ""
    return config.list.replace("{fold}", str(ALL_FOLDS if fold is None else fold))


def list_hash(config: EvalConfig, fold: int | None) -> str:
    """The content hash of the fold's published list, "" if none is used. Raises `FssError` if the list is missing."""
    url = _list_url(config, fold)
    return read_list(url).sha256 if url else ""


def resolve_base_learner(recipe: Recipe, method: MethodConfig, shards: Shards, fold: int | None
                         ) -> BaseLearnerConfig | None:
    """The base learner of a method in a fold, its `epochs` converted to `steps`; None for a method without one."""
    config = recipe.base_learner
    if not registry.method_class(method.name).on_base_learner:
        return None
    if not config.epochs:
        return config
    photos = len(FoldData(shards, fold).train_photos(config.novel_images))
    return config.model_copy(update={"steps": max(1, math.ceil(config.epochs * photos / config.batch)), "epochs": 0.0})


def resolve_steps(train: TrainConfig, shards: Shards, fold: int | None) -> TrainConfig:
    """`train` with `epochs` converted to `steps`. An epoch is one pass over the photos that the fold may train on."""
    if not train.epochs:
        return train
    photos = len(FoldData(shards, fold).train_photos(train.novel_images))
    steps = max(1, math.ceil(train.epochs * photos / train.batch))
    if train.stop > steps:
        raise FssError(f"train.stop={train.stop}, but {train.epochs:g} epochs of {photos} photos are {steps} steps",
                       where=shards.url, hint="lower train.stop or raise train.epochs")
    return train.model_copy(update={"steps": steps})


def _check_content(data: FoldData, planned: str) -> None:
    if data.shards.manifest.content_hash != planned:
        raise FssError("the shards were changed after this run was planned", where=data.shards.url,
                       hint="run the command again: it plans runs on the present shards")
