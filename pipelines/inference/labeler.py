"""The labeler: a bundle and the memories of support sets turn photo bytes into run-length masks, without Ray.

Threads decode and resize photos while the model works on earlier ones; at most a few batches of resized photos are in
memory. A job's batch is always padded to the same size, so that a mask does not depend on the other photos of its
batch. A photo that cannot be read gives a `PhotoFailure` among the results, never an exception.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fss_models.clip import Features, Images, Instances, Memory
from fss_models.errors import BadImage, FssError
from fss_models.instances import add_prompted, check_instances
from fss_models.limits import LIMITS, PhotoLimits
from fss_models.photo_files import decode_image
from fss_models.presence import UNCALIBRATED, LabelJudge, Presence, SupportStatistics
from pipelines.bundles.bundle import bundle_calibrator, load_bundle
from pipelines.config.mask_request import MaskRequest
from pipelines.config.wanted import Wanted
from pipelines.inference.decode_limit import DecodeLimit
from pipelines.inference.instances import prompt_level, with_instances
from pipelines.inference.masks import (
    Label,
    Labels,
    PhotoFailure,
    full_size,
    make_label,
    semantic_map,
    threshold_logit,
    to_host,
)
from pipelines.inference.supports import SupportSet, UnknownSupportError, load_support_set

MEMORIES = 64  # support sets kept on the device
Sizes = list[tuple[int, ...]]  # (height, width) of photos


class Labeler:
    """A bundle ready to label. Several threads may call it; the model runs one batch at a time.

    A support set that has no memory here yet is read from `supports_url`. If the bundle at `bundle_url` is not
    `bundle_id` (empty: any bundle), because it was replaced meanwhile, every support set is refused. The process ends
    when a photo takes longer than `max_seconds` to decode (0: no limit).
    """

    def __init__(self, bundle_url: str, device: str = "cpu", *, decoders: int = 2, supports_url: str = "",
                 bundle_id: str = "", limits: PhotoLimits = LIMITS, max_seconds: float = 0,
                 memories: int = MEMORIES) -> None:
        self.model, self.info = load_bundle(bundle_url, device)
        self._bundle_url, self._bundle_id = bundle_url, bundle_id or self.info.bundle_id
        self.device, self.supports_url, self.limits = device, supports_url, limits
        self._decode_limit = DecodeLimit(max_seconds)
        calibrator = bundle_calibrator(bundle_url, self.info)
        self.judge = LabelJudge(self.model, calibrator) if calibrator else None
        # no cachetools.LRUCache: the bound grows with a request, and a new champion's labeler needs the order of use
        self._memories: OrderedDict[str, _StoredMemory] = OrderedDict()
        self._max_memories, self._lock = memories, threading.RLock()
        self._pool = ThreadPoolExecutor(decoders, thread_name_prefix="decode")

    def add_support(self, supports: SupportSet) -> str:
        """Compute and keep the memory of a set. Returns its id. Raises `FssError` if the method refuses the set."""
        with self._lock:
            known = self._memories.get(supports.support_id)
            named = self.model.reads_names(self.model.config)
            if known is None or (named and known.phrase != supports.phrase):
                self._store(supports.support_id, self._memorise(supports))
            return supports.support_id

    @property
    def support_ids(self) -> list[str]:
        """The ids of the support sets whose memories are here, those used last at the end."""
        with self._lock:
            return list(self._memories)

    def memory(self, support_id: str) -> Memory:
        """The memory of a stored set, computed if it is not here yet. Raises `UnknownSupportError`."""
        return self._stored(support_id).memory

    def _stored(self, support_id: str) -> _StoredMemory:
        with self._lock:
            if support_id not in self._memories:
                if not self.supports_url:
                    raise UnknownSupportError(support_id)
                self.add_support(load_support_set(self.supports_url, support_id))
            self._memories.move_to_end(support_id)
            return self._memories[support_id]

    def label(self, images: Sequence[bytes], support_id: str, batch: int = 8,
              threshold: float = Wanted().threshold) -> list[Label | PhotoFailure]:
        """One result for each photo, in order. Pixels above the probability `threshold` belong to the object."""
        found = self.label_classes(images, MaskRequest(support_ids=(support_id,), threshold=threshold), batch)
        return [f if isinstance(f, PhotoFailure) else f[0] for f in found]

    def label_classes(self, images: Sequence[bytes], request: MaskRequest,
                      batch: int = 8) -> list[Labels | PhotoFailure]:
        """For each photo the masks of all classes of `request`, in order. Every photo is encoded once.

        Raises `FssError` if the method cannot give what the request asks for.
        """
        self.check(request)
        self._max_memories = max(self._max_memories, len(request.support_ids))
        return self._label(images, [request] * len(images), batch, fixed=True)

    def label_mixed(self, images: Sequence[bytes], requests: Sequence[MaskRequest],
                    batch: int = 8) -> list[Labels | PhotoFailure]:
        """As `label_classes`, but each photo has its own request: one batch may need many support sets.

        Small batches are padded to the next power of two only, since a person waits for the result.
        """
        return self._label(images, requests, batch, fixed=False)

    def _label(self, images: Sequence[bytes], requests: Sequence[MaskRequest], batch: int, *,
               fixed: bool) -> list[Labels | PhotoFailure]:
        results: list[Labels | PhotoFailure | None] = [None] * len(images)
        for rows, prepared in self._batches(images, results, batch):
            own = [requests[r] for r in rows]
            width = batch if fixed else _power_of_two(len(rows), batch)
            for row, labels in zip(rows, self._run(prepared, own, width, fixed=fixed), strict=True):
                results[row] = labels
        return [r for r in results if r is not None]

    def _batches(self, images: Sequence[bytes], results: list[Labels | PhotoFailure | None],
                 batch: int) -> Iterator[tuple[list[int], list[Images]]]:
        """Rows and prepared photos, `batch` readable ones at a time. Failures are written into `results`."""
        waiting: deque[tuple[int, Future[Images]]] = deque()
        rows: list[int] = []
        ready: list[Images] = []
        todo = iter(range(len(images)))
        while True:
            while len(waiting) < 2 * batch and (row := next(todo, None)) is not None:
                waiting.append((row, self._pool.submit(self._prepare, images[row])))
            if not waiting:
                break
            row, future = waiting.popleft()
            try:
                ready.append(future.result())
                rows.append(row)
            except BadImage as error:
                results[row] = PhotoFailure(reason=error.reason)
            if len(rows) == batch:
                yield rows, ready
                rows, ready = [], []
        if rows:
            yield rows, ready

    def _prepare(self, data: bytes) -> Images:
        """Decode and resize a photo; its full-size pixels exist only during this call."""
        with self._decode_limit():
            image = decode_image(data, limits=self.limits, exif=True)
        return self.model.prepare([image])

    @torch.inference_mode()
    def _run(self, prepared: list[Images], requests: list[MaskRequest], width: int, *, fixed: bool) -> list[Labels]:
        """The labels of up to `width` prepared photos. With `fixed` all photos have the same request."""
        with self._lock:
            features = self._encode(prepared, width)
            sizes = [tuple(i.sizes[0].tolist()) for i in prepared]
            photos: list[dict[int, Label]] = [{} for _ in requests]
            waiting: list[_PairOutput] = []
            for call in _whole_classes(requests, width) if fixed else _mixed(requests, width):
                found = self._segment(call, features, width, requests)
                separate = [f for f in found if requests[f.pair.row].overlaps == "keep"]
                self._keep_overlaps(separate, requests, sizes, photos)
                waiting += [f for f in found if requests[f.pair.row].overlaps == "resolve"]
            self._resolve_overlaps(waiting, requests, sizes, photos)
        return [tuple(labels[number] for number in sorted(labels)) for labels in photos]

    def _segment(self, calls: list[_Pair], features: Features, width: int,
                 requests: list[MaskRequest]) -> list[_PairOutput]:
        """One call of the model for `calls`, padded to a multiple of `width` pairs or to a power of two below it."""
        unique = list(dict.fromkeys(pair.support_id for pair in calls))
        stored, which = [self._stored(i) for i in unique], [unique.index(pair.support_id) for pair in calls]
        memory = stored[0].memory if len(stored) == 1 else Memory.stack([s.memory for s in stored])
        size = len(calls) if len(calls) % width == 0 else _power_of_two(len(calls), len(calls) * 2)
        pairs = torch.zeros(size, 2, dtype=torch.int64)
        pairs[: len(calls), 0] = torch.tensor(which)
        pairs[: len(calls), 1] = torch.tensor([pair.row for pair in calls])
        pairs[len(calls):, 1] = len(features) - 1
        pairs = pairs.to(self.device)
        found = self.model.segment(memory, features, pairs)
        levels = [None if pair.padding else prompt_level(requests[pair.row]) for pair in calls]
        if any(level is not None for level in levels):
            found = add_prompted(self.model, found, memory, features, pairs, [*levels, *[None] * (size - len(calls))])
        objects = found.instances
        scores, presence = found.scores.float().cpu().tolist(), [UNCALIBRATED] * len(calls)
        if self.judge:
            own = [requests[min(pair.row, len(requests) - 1)] for pair in calls]
            presence = self.judge.judge_masks(found, features, pairs, [s.statistics for s in stored if s.statistics],
                                              own)
        return [_PairOutput(pair=pair, logits=found.logits[i].float(), score=scores[i], presence=presence[i],
                            instances=objects.of_pair(i) if objects is not None else None)
                for i, pair in enumerate(calls) if not pair.padding]

    def _keep_overlaps(self, found: list[_PairOutput], requests: list[MaskRequest], sizes: Sizes,
                       photos: list[dict[int, Label]]) -> None:
        """Write each mask into `photos` independently; as many masks as photos are at full size at a time."""
        for first in range(0, len(found), len(requests)):
            some = found[first:first + len(requests)]
            masks = full_size([f.logits for f in some], [sizes[f.pair.row] for f in some],
                              [threshold_logit(requests[f.pair.row].threshold) for f in some], corners=self._corners)
            for f, mask in zip(some, masks, strict=True):
                photos[f.pair.row][f.pair.number] = self._label_of(mask, f, requests)

    def _resolve_overlaps(self, found: list[_PairOutput], requests: list[MaskRequest], sizes: Sizes,
                          photos: list[dict[int, Label]]) -> None:
        """Cut a semantic map of each photo into the masks of its classes, and write these into `photos`."""
        rows = sorted({f.pair.row for f in found})
        own = {row: sorted((f for f in found if f.pair.row == row), key=lambda f: f.pair.number) for row in rows}
        maps = [semantic_map([f.logits for f in own[row]], [f.weight for f in own[row]], sizes[row],
                             threshold_logit(requests[row].threshold), corners=self._corners) for row in rows]
        for row, owner in zip(rows, to_host(maps, [sizes[row] for row in rows]), strict=True):
            for number, f in enumerate(own[row], 1):
                photos[row][f.pair.number] = self._label_of((owner == number).astype(np.uint8, order="F"), f, requests)

    def _label_of(self, mask: np.ndarray, f: _PairOutput, requests: list[MaskRequest]) -> Label:
        return with_instances(make_label(mask, f.score, f.presence), requests[f.pair.row], f.instances,
                              corners=self._corners)

    def check(self, request: MaskRequest) -> None:
        """Raises `FssError` if the method cannot give what the request asks for."""
        check_instances(type(self.model), request.instances)

    @property
    def _corners(self) -> bool:
        return self.model.corners_aligned

    def _encode(self, prepared: list[Images], batch: int) -> Features:
        pixels = torch.cat([i.pixels for i in prepared])
        sizes = torch.cat([i.sizes for i in prepared])
        missing = batch - len(prepared)
        if missing:
            pixels = torch.cat([pixels, pixels.new_zeros(missing, *pixels.shape[1:])])
            sizes = torch.cat([sizes, sizes.new_full((missing, 2), self.model.side)])
        return self.model.encode(Images(pixels=pixels, sizes=sizes).to(self.device))

    @torch.inference_mode()
    def _memorise(self, supports: SupportSet) -> _StoredMemory:
        if self.info.bundle_id != self._bundle_id:  # not in __init__: Serve hides why a replica fails to start
            raise FssError(f"the bundle is {self.info.bundle_id} now, no longer {self._bundle_id}",
                           where=self._bundle_url,
                           hint="start the service again, or start a new job with another --out")
        images, prompts = supports.decoded()
        prepared = self.model.prepare(images)
        self.model.check_phrase(supports.prompt, self.model.config, f"class {supports.class_name!r}")
        marks = self.model.collate([prompts], prepared.sizes, names=[supports.phrase])
        features = self.model.encode(prepared.to(self.device))
        memory = self.model.memorise(features, marks.to(self.device))
        judge, phrase = self.judge, supports.phrase
        statistics = judge.describe_supports(features, prompts, memory, phrase) if judge else None
        return _StoredMemory(memory, statistics, phrase)

    def _store(self, support_id: str, memory: _StoredMemory) -> None:
        self._memories[support_id] = memory
        while len(self._memories) > self._max_memories:
            self._memories.popitem(last=False)


@dataclass(frozen=True)
class _Pair:
    """A support set and a photo: the photo's `row` in the batch, and the `number` of the class in its request."""

    support_id: str
    row: int
    number: int
    padding: bool = False


@dataclass(frozen=True, kw_only=True)
class _PairOutput:
    """A pair's logits [h, w] on the device, its predicted IoU `score`, the calibrator's estimate, and its instances."""

    pair: _Pair
    logits: Tensor
    score: float
    presence: Presence
    instances: Instances | None

    @property
    def weight(self) -> float:
        """Weight that resolves overlaps; a negative value excludes the mask."""
        if self.presence.status == "empty":
            return -1.0
        return self.score if self.presence.quality is None else self.presence.quality


@dataclass(frozen=True)
class _StoredMemory:
    """A support set's memory on the device, its statistics where the bundle has a calibrator, and the class's name."""

    memory: Memory
    statistics: SupportStatistics | None
    phrase: str


def _whole_classes(requests: list[MaskRequest], width: int) -> list[list[_Pair]]:
    """The calls of the model for a job: each has one class or several with all rows of the batch, padding included."""
    ids = requests[0].support_ids
    step = max(1, requests[0].pairs // width)
    classes = [[_Pair(support_id, row, number, row >= len(requests)) for row in range(width)]
               for number, support_id in enumerate(ids)]
    return [[pair for one in classes[i:i + step] for pair in one] for i in range(0, len(ids), step)]


def _mixed(requests: list[MaskRequest], width: int) -> list[list[_Pair]]:
    """The calls of the model for people: each has `width` pairs, or as many as the largest `pairs` of a request."""
    pairs = [_Pair(support_id, row, number) for row, request in enumerate(requests)
             for number, support_id in enumerate(request.support_ids)]
    step = max(width, *(request.pairs for request in requests))
    return [pairs[i:i + step] for i in range(0, len(pairs), step)]


def _power_of_two(count: int, limit: int) -> int:
    return min(limit, 1 << (count - 1).bit_length())
