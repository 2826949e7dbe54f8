"""The labeler: a bundle and the memories of support sets; image bytes in, run-length masks out. No Ray.

Photos are decoded and resized in threads while the model works on the photos before them, so at most a few batches
of resized photos are in memory. A job's batch is always padded to the same size, so that a mask does not depend on
which photos shared its batch. A photo that cannot be read is a `PhotoFailure` among the results, never an exception.
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

from fss_models.clip import Features, Images, Memory
from fss_models.errors import BadImage, FssError
from pipelines.bundles.bundle import bundle_calibrator, load_bundle
from pipelines.config.mask_request import MaskRequest
from pipelines.data.decode import decode_image
from pipelines.inference.masks import (
    UNCALIBRATED,
    Label,
    Labels,
    PhotoFailure,
    Presence,
    full_size,
    level_of,
    make_label,
    semantic_map,
    to_host,
)
from pipelines.inference.presence import LabelJudge, SupportStatistics
from pipelines.inference.supports import SupportSet, UnknownSupportError, load_support_set

MEMORIES = 64  # support sets kept on the device
Sizes = list[tuple[int, ...]]  # (height, width) of photos


@dataclass(frozen=True, kw_only=True)
class PhotoLimits:
    """What a photo may be."""

    max_pixels: int = 50_000_000
    max_bytes: int = 64_000_000


class Labeler:
    """A bundle ready to label. Safe to call from several threads; the model itself runs one batch at a time.

    supports_url is where support sets are stored: one whose memory is not at hand is read from there. With `bundle_id`
    another bundle, which somebody put there meanwhile, labels nothing: every support set is refused.
    """

    def __init__(self, bundle_url: str, device: str = "cpu", *, decoders: int = 2, supports_url: str = "",
                 bundle_id: str = "", limits: PhotoLimits | None = None, memories: int = MEMORIES) -> None:
        self.model, self.info = load_bundle(bundle_url, device)
        self._place, self._wanted = bundle_url, bundle_id or self.info.bundle_id
        self.device, self.supports_url, self.limits = device, supports_url, limits or PhotoLimits()
        calibrator = bundle_calibrator(bundle_url, self.info)
        self.judge = LabelJudge(self.model, calibrator) if calibrator else None
        self._memories: OrderedDict[str, _StoredMemory] = OrderedDict()
        self._keep, self._lock = memories, threading.RLock()
        self._pool = ThreadPoolExecutor(decoders, thread_name_prefix="decode")

    def add_support(self, supports: SupportSet) -> str:
        """Compute the set's memory once and keep it. Returns the id. Raises `FssError` if the method refuses it."""
        with self._lock:
            if supports.support_id not in self._memories:
                self._remember(supports.support_id, self._memorise(supports))
            return supports.support_id

    def memory(self, support_id: str) -> Memory:
        """The memory of a set, computed from storage if it is not at hand. Raises `UnknownSupportError`."""
        return self._held(support_id).memory

    def _held(self, support_id: str) -> _StoredMemory:
        with self._lock:
            if support_id not in self._memories:
                if not self.supports_url:
                    raise UnknownSupportError(support_id)
                self.add_support(load_support_set(self.supports_url, support_id))
            self._memories.move_to_end(support_id)
            return self._memories[support_id]

    def label(self, images: Sequence[bytes], support_id: str, batch: int = 8,
              threshold: float = 0.5) -> list[Label | PhotoFailure]:
        """One result a photo, in order. `threshold` is the probability above which a pixel is the object."""
        found = self.label_classes(images, MaskRequest(support_ids=(support_id,), threshold=threshold), batch)
        return [f if isinstance(f, PhotoFailure) else f[0] for f in found]

    def label_classes(self, images: Sequence[bytes], wanted: MaskRequest,
                      batch: int = 8) -> list[Labels | PhotoFailure]:
        """The masks of all classes that are wanted, photo by photo; every photo is encoded once."""
        self._keep = max(self._keep, len(wanted.support_ids))
        return self._label(images, [wanted] * len(images), batch, fixed=True)

    def label_mixed(self, images: Sequence[bytes], wanted: Sequence[MaskRequest],
                    batch: int = 8) -> list[Labels | PhotoFailure]:
        """As `label_classes`, each photo with its own wishes: one batch may serve many support sets.

        Small batches are padded to the next power of two only: a person waits for them.
        """
        return self._label(images, wanted, batch, fixed=False)

    def _label(self, images: Sequence[bytes], wanted: Sequence[MaskRequest], batch: int, *,
               fixed: bool) -> list[Labels | PhotoFailure]:
        results: list[Labels | PhotoFailure | None] = [None] * len(images)
        for rows, prepared in self._batches(images, results, batch):
            asked = [wanted[r] for r in rows]
            width = batch if fixed else _power_of_two(len(rows), batch)
            for row, labels in zip(rows, self._run(prepared, asked, width, fixed=fixed), strict=True):
                results[row] = labels
        return [r for r in results if r is not None]

    def _batches(self, images: Sequence[bytes], results: list[Labels | PhotoFailure | None],
                 batch: int) -> Iterator[tuple[list[int], list[Images]]]:
        """Rows and prepared photos, `batch` readable ones at a time; failures go into `results`."""
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
        """Decode and resize at once: full-size pixels live only here."""
        image = decode_image(data, max_pixels=self.limits.max_pixels, max_bytes=self.limits.max_bytes, exif=True)
        return self.model.prepare([image])

    @torch.inference_mode()
    def _run(self, prepared: list[Images], wanted: list[MaskRequest], width: int, *, fixed: bool) -> list[Labels]:
        """Up to `width` prepared photos -> their labels. With `fixed` all want the same."""
        with self._lock:
            features = self._encode(prepared, width)
            sizes = [tuple(i.sizes[0].tolist()) for i in prepared]
            photos: list[dict[int, Label]] = [{} for _ in wanted]
            waiting: list[_PairOutput] = []
            for call in _whole_classes(wanted, width) if fixed else _mixed(wanted, width):
                found = self._segment(call, features, width, wanted)
                self._keep_overlaps([f for f in found if wanted[f.pair.row].overlaps == "keep"], wanted, sizes, photos)
                waiting += [f for f in found if wanted[f.pair.row].overlaps == "resolve"]
            self._resolve_overlaps(waiting, wanted, sizes, photos)
        return [tuple(labels[number] for number in sorted(labels)) for labels in photos]

    def _segment(self, asked: list[_Pair], features: Features, width: int,
                 wanted: list[MaskRequest]) -> list[_PairOutput]:
        """One call of the model, padded to a multiple of `width` pairs or a power of two below it."""
        unique = list(dict.fromkeys(pair.support_id for pair in asked))
        held, which = [self._held(i) for i in unique], [unique.index(pair.support_id) for pair in asked]
        memory = held[0].memory if len(held) == 1 else Memory.stack([h.memory for h in held])
        size = len(asked) if len(asked) % width == 0 else _power_of_two(len(asked), len(asked) * 2)
        pairs = torch.zeros(size, 2, dtype=torch.int64)
        pairs[: len(asked), 0] = torch.tensor(which)
        pairs[: len(asked), 1] = torch.tensor([pair.row for pair in asked])
        pairs[len(asked):, 1] = len(features) - 1
        pairs = pairs.to(self.device)
        found = self.model.segment(memory, features, pairs)
        scores, told = found.scores.float().cpu().tolist(), [UNCALIBRATED] * len(asked)
        if self.judge:
            questions = [wanted[min(pair.row, len(wanted) - 1)] for pair in asked]
            told = self.judge.ask(found, features, pairs, [h.known for h in held if h.known], questions)
        return [_PairOutput(pair=pair, logits=found.logits[i].float(), score=scores[i], told=told[i])
                for i, pair in enumerate(asked) if not pair.padding]

    def _keep_overlaps(self, found: list[_PairOutput], wanted: list[MaskRequest], sizes: Sizes,
                       photos: list[dict[int, Label]]) -> None:
        """Every mask by itself, as many at full size at a time as there are photos."""
        for first in range(0, len(found), len(wanted)):
            some = found[first:first + len(wanted)]
            masks = full_size([f.logits for f in some], [sizes[f.pair.row] for f in some],
                              [level_of(wanted[f.pair.row].threshold) for f in some], corners=self._corners)
            for f, mask in zip(some, masks, strict=True):
                photos[f.pair.row][f.pair.number] = make_label(mask, f.score, f.told)

    def _resolve_overlaps(self, found: list[_PairOutput], wanted: list[MaskRequest], sizes: Sizes,
                          photos: list[dict[int, Label]]) -> None:
        """A semantic map a photo, cut into the masks of its classes; the maps travel in one copy."""
        rows = sorted({f.pair.row for f in found})
        own = {row: sorted((f for f in found if f.pair.row == row), key=lambda f: f.pair.number) for row in rows}
        maps = [semantic_map([f.logits for f in own[row]], [f.weight for f in own[row]], sizes[row],
                             level_of(wanted[row].threshold), corners=self._corners) for row in rows]
        for row, owner in zip(rows, to_host(maps, [sizes[row] for row in rows]), strict=True):
            for number, f in enumerate(own[row], 1):
                photos[row][f.pair.number] = make_label((owner == number).astype(np.uint8, order="F"), f.score, f.told)

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
        if self.info.bundle_id != self._wanted:  # not when it starts: a replica that cannot start tells nobody why
            raise FssError(f"holds bundle {self.info.bundle_id} now, no longer {self._wanted}", where=self._place,
                           mend="start the service again, or a new job with another --out")
        images, prompts = supports.decoded()
        prepared = self.model.prepare(images)
        marks = self.model.collate([prompts], prepared.sizes)
        features = self.model.encode(prepared.to(self.device))
        memory = self.model.memorise(features, marks.to(self.device))
        return _StoredMemory(memory, self.judge.know(features, prompts, memory) if self.judge else None)

    def _remember(self, support_id: str, held: _StoredMemory) -> None:
        self._memories[support_id] = held
        while len(self._memories) > self._keep:
            self._memories.popitem(last=False)


@dataclass(frozen=True)
class _Pair:
    """One (support set, photo): the photo's row of the batch, and which of its classes it is."""

    support_id: str
    row: int
    number: int
    padding: bool = False


@dataclass(frozen=True, kw_only=True)
class _PairOutput:
    """What the model says of a pair: logits [h, w] on the device, predicted IoU; and what the calibrator says."""

    pair: _Pair
    logits: Tensor
    score: float
    told: Presence

    @property
    def weight(self) -> float:
        """Of its probabilities where masks overlap; below 0 it gets no pixel."""
        if self.told.status == "empty":
            return -1.0
        return self.score if self.told.quality is None else self.told.quality


@dataclass(frozen=True)
class _StoredMemory:
    """A support set on the device."""

    memory: Memory
    known: SupportStatistics | None


def _whole_classes(wanted: list[MaskRequest], width: int) -> list[list[_Pair]]:
    """Calls of a job: a class with all rows of the batch, padding included, or several such classes."""
    ids = wanted[0].support_ids
    step = max(1, wanted[0].pairs // width)
    classes = [[_Pair(support_id, row, number, row >= len(wanted)) for row in range(width)]
               for number, support_id in enumerate(ids)]
    return [[pair for one in classes[i:i + step] for pair in one] for i in range(0, len(ids), step)]


def _mixed(wanted: list[MaskRequest], width: int) -> list[list[_Pair]]:
    """Calls for people: all pairs, as many at a time as the batch is wide, or as one of the photos allows."""
    pairs = [_Pair(support_id, row, number) for row, one in enumerate(wanted)
             for number, support_id in enumerate(one.support_ids)]
    step = max(width, *(one.pairs for one in wanted))
    return [pairs[i:i + step] for i in range(0, len(pairs), step)]


def _power_of_two(count: int, limit: int) -> int:
    return min(limit, 1 << (count - 1).bit_length())
