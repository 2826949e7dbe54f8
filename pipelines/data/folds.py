"""What a run or an evaluation reads: the fold's classes, the training stream, the photos it opens, the test list."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from fss_models.errors import FssError
from pipelines.config.evaluate import EvalConfig
from pipelines.config.run import RunSpec
from pipelines.config.train import TrainConfig
from pipelines.data.class_names import counterparts
from pipelines.data.episodes import EpisodeList, episode_list, join_lists
from pipelines.data.mixture import MixedStream
from pipelines.data.published import bind, read_list
from pipelines.data.schema import ClassInfo
from pipelines.data.shardset import ALL_FOLDS, Shards
from pipelines.data.stream import EpisodeStream


@dataclass(frozen=True)
class FoldData:
    """One fold of a dataset: `base` classes are trained, `novel` ones tested. All are base where `fold` is None.

    `hidden`: further classes (id -> name) that training must not see, counterparts of another dataset's novel ones.
    """

    shards: Shards
    fold: int | None
    hidden: Mapping[int, str] = field(default_factory=dict)
    held: frozenset[int] = frozenset()  # base classes left out to choose the number of steps on them

    @staticmethod
    def of(spec: RunSpec) -> FoldData:
        """What a run reads. Raises as `open` does."""
        return replace(FoldData.open(spec.shards, spec.fold), held=frozenset(spec.holdout))

    @staticmethod
    def open(url: str, fold: int | None) -> FoldData:
        """Raises `FssError` for missing shards and for a fold that has no classes."""
        shards = Shards(url)
        known = shards.folds
        if fold is not None and fold not in known:
            raise FssError(f"there is no fold {fold}", where=url, mend=f"folds: {', '.join(map(str, known))}")
        return FoldData(shards, fold)

    @property
    def base(self) -> list[ClassInfo]:
        """Classes that may be trained on."""
        return [c for c in self.shards.manifest.classes
                if (self.fold is None or c.fold != self.fold) and c.class_id not in {*self.hidden, *self.held}]

    @property
    def tested(self) -> list[ClassInfo]:
        """Classes the fold is scored on: its novel ones, or all in a refit."""
        return [c for c in self.shards.manifest.classes if self.fold is None or c.fold == self.fold]

    @property
    def novel_ids(self) -> list[int]:
        """Classes that training must not see."""
        return sorted({*self.hidden, *self.held, *(c.class_id for c in self.tested if self.fold is not None)})

    def avoided(self, novel_images: str) -> set[int]:
        """Classes whose photos training does not open; those of held-out classes never, as selection opens them."""
        return set(self.novel_ids) if novel_images == "drop" else set(self.held)

    @property
    def hidden_names(self) -> list[str]:
        """Their names."""
        names = {c.class_id: c.name for c in self.shards.manifest.classes} | dict(self.hidden)
        return [names[c] for c in self.novel_ids]

    def parts(self, spec: RunSpec) -> list[FoldData]:
        """This dataset and the others of the run's mixture, in which counterparts of its novel classes are hidden.

        A class that was dropped here is in no fold: its counterparts are hidden too. Raises `FssError` for shards of
        the mixture that do not say which ids their dropped classes have.
        """
        others = [FoldData.open(m.shards, None) for m in spec.mixture]
        novel = [self.shards.classes[c].name for c in sorted(self.held)]
        if self.fold is not None:
            novel += [*(c.name for c in self.tested), *self.shards.manifest.dropped_classes]
        if not novel:
            return [self, *others]
        return [self, *(replace(o, hidden=counterparts(novel, o.shards.class_names)) for o in others)]

    def stream(self, spec: RunSpec, *, position: Any, rank: int, world: int,
               side: int = 0) -> EpisodeStream | MixedStream:
        """The training episodes of one worker, of all datasets of the run; as squares where there is a side."""
        batch = spec.train.batch
        if not spec.mixture:
            return self._episodes_of(spec, side, batch, rank, world, position)
        sources = self.parts(spec)
        rest = [m.weight for m in spec.mixture]
        return MixedStream([partial(s._episodes_of, spec, side, world, rank, world) for s in sources],
                           [1 - sum(rest), *rest], batch=batch, seed=spec.seed, world=world, position=position)

    def _episodes_of(self, spec: RunSpec, side: int, batch: int, rank: int, world: int, position: Any) -> EpisodeStream:
        t = spec.train
        return EpisodeStream(
            self.shards.url, classes=[c.class_id for c in self.base], novel=self.avoided(t.novel_images),
            shots=t.shots, targets=t.targets, batch=batch, seed=spec.seed, rank=rank, world=world,
            pool_bytes=t.pool_bytes, position=position, sampler=t.sampler, decode=t.features == "off",
            pixel_bytes=t.pixel_bytes, side=side)

    def train_photos(self, novel_images: str) -> list[str]:
        """sha256 (16 digits) of every photo that training may open."""
        return sorted({row["sha256"][:16] for row in self.train_rows(novel_images)})

    def train_rows(self, novel_images: str) -> list[dict[str, Any]]:
        """The index rows of these photos: those in blocks of base classes, less the filtered."""
        base, rows = {c.class_id for c in self.base}, self.shards.rows
        avoid = self.avoided(novel_images)
        blocks = (b for b in self.shards.block_index.to_pylist() if b["class_id"] in base)
        photos = (rows[i] for i in dict.fromkeys(i for b in blocks for i in b["image_ids"]))
        return [row for row in photos if not avoid.intersection(row["class_ids"])]

    def episodes(self, config: EvalConfig) -> EpisodeList:
        """The fold's fixed test list: the one `eval.list` names, else one kept beside the shards.

        Lists named by {fold} are the folds' own: the refit on all classes is scored on one kept beside the shards.
        Raises `FssError` for a list of another fold or of images that the shards do not have.
        """
        fold = ALL_FOLDS if self.fold is None else self.fold
        if url := _list_url(config, self.fold):
            return self._published(url, fold)
        return join_lists([episode_list(self.shards, fold=fold, shots=config.shots, episodes=config.episodes,
                                        seed=config.seed + draw) for draw in range(config.draws)])

    def _published(self, url: str, fold: int) -> EpisodeList:
        listed = read_list(url)
        if listed.fold != fold:
            raise FssError(f"is a list of fold {listed.fold}, not {fold}", where=url,
                           mend="write {fold} in eval.list where its number stands, or run that fold alone")
        bound, tested = bind(self.shards, listed, where=url), {c.class_id for c in self.tested}
        if other := sorted(set(bound.class_ids) - tested):
            name = self.shards.classes[other[0]].name
            raise FssError(f"tests {len(other)} classes that are not in fold {fold} of these shards (first: {name})",
                           where=url, mend="the list and the shards split the classes by another rule or shot")
        return bound


def _list_url(config: EvalConfig, fold: int | None) -> str:
    """The published list of a fold, "" where none is used."""
    if fold is None and "{fold}" in config.list:
        return ""
    return config.list.replace("{fold}", str(ALL_FOLDS if fold is None else fold))


def list_hash(config: EvalConfig, fold: int | None) -> str:
    """The content hash of the fold's published list, "" where none is used. Raises `FssError` if it is not there."""
    url = _list_url(config, fold)
    return read_list(url).sha256 if url else ""


def resolve_steps(train: TrainConfig, shards: Shards, fold: int | None) -> TrainConfig:
    """The same with `epochs` turned into steps: passes over the photos that the fold may train on."""
    if not train.epochs:
        return train
    photos = len(FoldData(shards, fold).train_photos(train.novel_images))
    return train.model_copy(update={"steps": max(1, math.ceil(train.epochs * photos / train.batch))})
