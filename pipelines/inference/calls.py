"""Calls of the model for a batch of photos: which pairs of support set and photo a call has, and what it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fss_models.clip import Instances, Memory
from fss_models.execution import Download
from fss_models.presence import UNCALIBRATED, LabelJudge, Presence, SupportStatistics
from pipelines.config.mask_request import MaskRequest

Sizes = list[tuple[int, ...]]  # (height, width) of photos


@dataclass(frozen=True)
class StoredMemory:
    """A support set's memory on the device, its statistics where the bundle has a calibrator, and the class's name."""

    memory: Memory
    statistics: SupportStatistics | None
    phrase: str


@dataclass(frozen=True)
class Pair:
    """A support set and a photo: the photo's `row` in the batch, and the `number` of the class in its request."""

    support_id: str
    row: int
    number: int
    padding: bool = False


@dataclass(frozen=True)
class PhotoBatch:
    """The photos of a batch: their rows among the call's photos, requests, and (height, width)."""

    rows: list[int]
    requests: list[MaskRequest]
    sizes: Sizes


@dataclass(frozen=True)
class CallOutput:
    """What one call of the model gave for `pairs`: logits, scores and measures, on their way to the host."""

    pairs: tuple[Pair, ...]
    download: Download
    statistics: tuple[SupportStatistics, ...]  # one for each pair; none without a calibrator
    instances: Instances | None = None  # on the device

    @property
    def size(self) -> int:
        """Bytes that wait with it, on the host and on the device."""
        own = self.instances.logits if self.instances is not None else None
        return self.download.size + (0 if own is None else own.numel() * own.element_size())

    def split(self, requests: Sequence[MaskRequest]) -> tuple[list[PairMask], list[PairMask]]:
        """The masks, without padding: those that keep overlaps, and those that resolve them."""
        masks = [PairMask(self, at) for at, pair in enumerate(self.pairs) if not pair.padding]
        keep = [m for m in masks if requests[m.pair.row].overlaps == "keep"]
        return keep, [m for m in masks if requests[m.pair.row].overlaps == "resolve"]


@dataclass(frozen=True)
class PairMask:
    """One mask of a call's output."""

    output: CallOutput
    at: int

    @property
    def pair(self) -> Pair:
        """The mask's support set and photo."""
        return self.output.pairs[self.at]

    @property
    def instances(self) -> Instances | None:
        """The pair's instances, where the model gave some."""
        return None if self.output.instances is None else self.output.instances.of_pair(self.at)

    def read(self, judge: LabelJudge | None, request: MaskRequest) -> tuple[Tensor, float, Presence]:
        """Logits [h, w], score and estimate. Waits for the copy from the device."""
        logits, scores, *measured = self.output.download.wait()
        presence = UNCALIBRATED
        if judge and measured:
            presence = judge.decide(measured[0][self.at:self.at + 1], [self.output.statistics[self.at]], [request])[0]
        return logits[self.at], scores[self.at].item(), presence


def sizes_of(sizes: Tensor) -> Sizes:
    """Sizes [N, 2] as (height, width) of each photo."""
    return [tuple(one) for one in sizes.tolist()]


def mask_weight(score: float, presence: Presence) -> float:
    """Weight of a mask that resolves overlaps; a negative value excludes the mask."""
    if presence.status == "empty":
        return -1.0
    return score if presence.quality is None else presence.quality


def whole_classes(requests: list[MaskRequest], width: int) -> list[list[Pair]]:
    """The calls of the model for a job: each has one class or several with all rows of the batch, padding included."""
    ids = requests[0].support_ids
    step = max(1, requests[0].pairs // width)
    classes = [[Pair(support_id, row, number, row >= len(requests)) for row in range(width)]
               for number, support_id in enumerate(ids)]
    return [[pair for one in classes[i:i + step] for pair in one] for i in range(0, len(ids), step)]


def mixed_calls(requests: list[MaskRequest], width: int) -> list[list[Pair]]:
    """The calls of the model for people: each has `width` pairs, or as many as the largest `pairs` of a request."""
    pairs = [Pair(support_id, row, number) for row, request in enumerate(requests)
             for number, support_id in enumerate(request.support_ids)]
    step = max(width, *(request.pairs for request in requests))
    return [pairs[i:i + step] for i in range(0, len(pairs), step)]


def power_of_two(count: int, limit: int) -> int:
    """The least power of two that is not below `count`, at most `limit`."""
    return min(limit, 1 << (count - 1).bit_length())
