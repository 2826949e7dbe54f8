"""The labeler: a bundle and the memories of support sets; image bytes in, run-length masks out. No Ray.

Photos are decoded and resized in threads while the model works on the photos before them, so at most a few batches
of resized photos are in memory. A job's batch is always padded to the same size, so that a mask does not depend on
which photos shared its batch. A photo that cannot be read is a `Failure` among the results, never an exception.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco
from torch import Tensor

from fss_models.clip import Features, Images, Memory
from fss_models.errors import BadImage
from pipelines.bundle import load_bundle
from pipelines.data.decode import decode_image
from pipelines.serving.supports import SupportSet, UnknownSupportError, load_support_set

MEMORIES = 64  # support sets kept on the device


@dataclass(frozen=True, kw_only=True)
class Label:
    """One mask, in pixels of the upright photo: COCO's counts, box x y width height, area, score in [0, 1]."""

    height: int
    width: int
    counts: str
    bbox: tuple[float, float, float, float]
    area: int
    score: float


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a photo has no label."""

    reason: str
    stage: str = "decode"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a photo may be."""

    max_pixels: int = 50_000_000
    max_bytes: int = 64_000_000


class Labeler:
    """A bundle ready to label. Safe to call from several threads; the model itself runs one batch at a time.

    supports_url is where support sets are stored: one whose memory is not at hand is read from there.
    """

    def __init__(self, bundle_url: str, device: str = "cpu", *, decoders: int = 2, supports_url: str = "",
                 limits: Limits | None = None, memories: int = MEMORIES) -> None:
        self.model, self.info = load_bundle(bundle_url, device)
        self.device, self.supports_url, self.limits = device, supports_url, limits or Limits()
        self._memories: OrderedDict[str, Memory] = OrderedDict()
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
        with self._lock:
            if support_id not in self._memories:
                if not self.supports_url:
                    raise UnknownSupportError(support_id)
                self.add_support(load_support_set(self.supports_url, support_id))
            self._memories.move_to_end(support_id)
            return self._memories[support_id]

    def label(self, images: Sequence[bytes], support_id: str, batch: int = 8,
              threshold: float = 0.5) -> list[Label | Failure]:
        """One result a photo, in order. `threshold` is the probability above which a pixel is the object."""
        return self._label(images, [(support_id, threshold)] * len(images), batch, fixed=True)

    def label_mixed(self, images: Sequence[bytes], wanted: Sequence[tuple[str, float]],
                    batch: int = 8) -> list[Label | Failure]:
        """As `label`, each photo with its own (support_id, threshold): one batch may serve many support sets.

        Small batches are padded to the next power of two only: a person waits for them.
        """
        return self._label(images, wanted, batch, fixed=False)

    def _label(self, images: Sequence[bytes], wanted: Sequence[tuple[str, float]], batch: int, *,
               fixed: bool) -> list[Label | Failure]:
        results: list[Label | Failure | None] = [None] * len(images)
        for rows, prepared in self._batches(images, results, batch):
            width = batch if fixed else min(batch, 1 << (len(rows) - 1).bit_length())
            for row, label in zip(rows, self._run(prepared, [wanted[r] for r in rows], width), strict=True):
                results[row] = label
        return [r for r in results if r is not None]

    def _batches(self, images: Sequence[bytes], results: list[Label | Failure | None],
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
                results[row] = Failure(reason=error.reason)
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
    def _run(self, prepared: list[Images], wanted: list[tuple[str, float]], batch: int) -> list[Label]:
        """Up to `batch` prepared photos -> their labels."""
        with self._lock:
            features = self._encode(prepared, batch)
            memory, which = self._stack([support for support, _ in wanted])
            pairs = torch.zeros(batch, 2, dtype=torch.int64)
            pairs[: len(wanted), 0] = torch.tensor(which)
            pairs[:, 1] = torch.arange(batch)
            found = self.model.segment(memory, features, pairs.to(self.device))
            levels = [math.log(t / (1 - t)) for _, t in wanted]
            sizes = [tuple(i.sizes[0].tolist()) for i in prepared]
            masks = _full_size(found.logits.float(), sizes, levels, corners=self.model.corners_aligned)
            scores = found.scores.float().cpu().tolist()
        return [_label(m, s) for m, s in zip(masks, scores[: len(masks)], strict=True)]

    def _encode(self, prepared: list[Images], batch: int) -> Features:
        pixels = torch.cat([i.pixels for i in prepared])
        sizes = torch.cat([i.sizes for i in prepared])
        missing = batch - len(prepared)
        if missing:
            pixels = torch.cat([pixels, pixels.new_zeros(missing, *pixels.shape[1:])])
            sizes = torch.cat([sizes, sizes.new_full((missing, 2), self.model.side)])
        return self.model.encode(Images(pixels=pixels, sizes=sizes).to(self.device))

    def _stack(self, ids: list[str]) -> tuple[Memory, list[int]]:
        """The memories that are wanted, each once, and the row of each photo's."""
        unique = list(dict.fromkeys(ids))
        held = [self.memory(i) for i in unique]
        return (held[0] if len(held) == 1 else Memory.stack(held)), [unique.index(i) for i in ids]

    @torch.inference_mode()
    def _memorise(self, supports: SupportSet) -> Memory:
        images, prompts = supports.decoded()
        prepared = self.model.prepare(images)
        marks = self.model.collate([prompts], prepared.sizes)
        features = self.model.encode(prepared.to(self.device))
        return self.model.memorise(features, marks.to(self.device))

    def _remember(self, support_id: str, memory: Memory) -> None:
        self._memories[support_id] = memory
        while len(self._memories) > self._keep:
            self._memories.popitem(last=False)


def _full_size(
    logits: Tensor, sizes: Sequence[tuple[int, ...]], levels: Sequence[float], *, corners: bool
) -> list[np.ndarray]:
    """[P, h, w] logits -> masks [H, W] uint8 in column order, as run-length coding reads them.

    Each is transposed while small, enlarged on the device, and all travel to the host in one copy.
    """
    flat = []
    for logit, (height, width), level in zip(logits, sizes, levels, strict=False):
        turned = logit.transpose(0, 1)[None, None]
        large = F.interpolate(turned, size=(width, height), mode="bilinear", align_corners=corners)
        flat.append((large[0, 0] > level).to(torch.uint8).flatten())
    host = torch.cat(flat).cpu().numpy()
    masks, start = [], 0
    for height, width in sizes:
        end = start + height * width
        masks.append(host[start:end].reshape(width, height).T)
        start = end
    return masks


def _label(mask: np.ndarray, score: float) -> Label:
    rle = coco.encode(mask[:, :, None])[0]
    x, y, w, h = (float(v) for v in coco.toBbox(rle))
    return Label(height=mask.shape[0], width=mask.shape[1], counts=rle["counts"].decode(), bbox=(x, y, w, h),
                 area=int(coco.area(rle)), score=score)
