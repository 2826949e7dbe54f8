"""The labeler: a bundle and the memories of support sets turn photo bytes into run-length masks, without Ray.

Three stages overlap, also those of different calls: threads decode and resize photos ahead of the model, the model
works on one batch at a time, and threads turn its logits into run lengths. Only the model holds the lock. What waits
between two stages is bounded by bytes. A job's batch is always padded to the same size, so that a mask does not depend
on the other photos of its batch. A photo that cannot be read gives a `PhotoFailure` among the results, never an
exception.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco
from torch import Tensor

from fss_models.clip import Features, Images, Memory
from fss_models.errors import BadImage, FssError
from fss_models.execution import Execution
from fss_models.instances import add_prompted, check_instances
from fss_models.limits import LIMITS, PhotoLimits
from fss_models.precision import Precision
from fss_models.preprocess import Mode
from fss_models.presence import LabelJudge
from fss_models.run_lengths import empty_mask, encode_logits
from fss_models.tile_supports import cut_supports, fitting_side
from pipelines.base.version import package_version
from pipelines.bundles.bundle import bundle_calibrator, load_bundle
from pipelines.config.mask_request import MaskRequest
from pipelines.config.wanted import Wanted
from pipelines.inference.calls import (
    CallOutput,
    Pair,
    PairMask,
    PhotoBatch,
    Sizes,
    StoredMemory,
    mask_weight,
    mixed_calls,
    power_of_two,
    sizes_of,
    whole_classes,
)
from pipelines.inference.instances import prompt_level, with_instances
from pipelines.inference.kept_features import FeatureKeeper, KeptPhotos, half, padded
from pipelines.inference.masks import Label, Labels, PhotoFailure, make_label, semantic_map, threshold_logit
from pipelines.inference.preparing import PhotoPreparer
from pipelines.inference.stages import ByteBudget, DecodeStage, FinishStage
from pipelines.inference.supports import SupportSet, UnknownSupportError, check_reads, load_support_set
from pipelines.inference.tiled import TiledPhoto, at_tile, needs_tiles, split_key, tile_key

MEMORIES = 64  # support sets kept on the device
KEPT_BYTES = 2 << 30  # of kept features in memory, and of their files; one call with more works alone
Encode = Callable[[], Features]
Placed = tuple[int, int, Label]  # row of the photo, number of the class, label


class Labeler:
    """A bundle ready to label. Several threads may call it; the model runs one batch at a time.

    A support set that has no memory here yet is read from `supports_url`. If the bundle at `bundle_url` is not
    `bundle_id` (empty: any bundle), because it was replaced meanwhile, every support set is refused. The process ends
    when a photo takes longer than `max_seconds` to decode (0: no limit). `preprocessing` (default: the bundle's) is of
    the photos that are labelled; supports are prepared as the bundle says.
    With `features_url`, features of jobs' photos are kept there (see `kept_features`). `decoders` threads decode
    photos, and as many others compute run lengths.
    """

    def __init__(self, bundle_url: str, device: str = "cpu", *, decoders: int = 2, supports_url: str = "",
                 bundle_id: str = "", limits: PhotoLimits = LIMITS, max_seconds: float = 0, memories: int = MEMORIES,
                 precision: Precision = "float32", compiled: bool = False, preprocessing: Mode | None = None,
                 features_url: str = "") -> None:
        self.model, self.info = load_bundle(bundle_url, device)
        self._bundle_url, self._bundle_id = bundle_url, bundle_id or self.info.bundle_id
        self.device, self.supports_url, self.limits = device, supports_url, limits
        self.execution = Execution(self.model, precision, compiled=compiled)
        self._preparer = PhotoPreparer(self.model, limits, max_seconds, preprocessing or self.model.preprocessor.mode)
        self.keeper = FeatureKeeper(features_url, self._about_features()) if features_url else None
        calibrator = bundle_calibrator(bundle_url, self.info)
        self.judge = LabelJudge(self.model, calibrator) if calibrator else None
        # no cachetools.LRUCache: the bound grows with a request, and a new champion's labeler needs the order of use
        self._memories: OrderedDict[str, StoredMemory] = OrderedDict()
        self._max_memories, self._lock = memories, threading.RLock()
        self._kept = ByteBudget(KEPT_BYTES)
        self._kept_photo = 0  # bytes of a photo's kept features, known from the first supports on
        self._given: dict[str, SupportSet] = {}  # that are stored nowhere
        self._fitting: dict[str, int | None] = {}  # support set -> the side of tiles that fits its objects
        self._decode = DecodeStage(decoders, 12 * self.model.side ** 2)
        self._finish: FinishStage[list[Placed]] = FinishStage(decoders)

    @property
    def preprocessing(self) -> Mode:
        """How the photos that are labelled are resized."""
        return self._preparer.mode

    @preprocessing.setter
    def preprocessing(self, mode: Mode) -> None:
        self._preparer.mode = mode

    def _about_features(self) -> dict[str, Any]:
        """All that decides the features of a photo."""
        how = self.execution
        return {"bundle_id": self.info.bundle_id, "preprocessing": self.preprocessing, "compiled": how.compiled,
                "precision": how.precision, "device": how.device_name, "code_version": package_version(),
                **self.limits.model_dump()}

    def add_support(self, supports: SupportSet, tile: int = 0) -> str:
        """Compute and keep the memory of a set, for tiles of `tile` pixels (0: whole photos). Raises `FssError`."""
        key = tile_key(supports.support_id, tile)
        with self._lock:
            if not self.supports_url:
                self._given[supports.support_id] = supports
            known = self._memories.get(key)
            if known is None or (self.reads_names and known.phrase != supports.phrase):
                self._store(key, self._memorise(supports, tile))
            return supports.support_id

    @property
    def reads_names(self) -> bool:
        """Whether class names are part of the prompt."""
        return self.model.reads_names(self.model.config)

    @property
    def support_ids(self) -> list[str]:
        """The keys of the memories that are here, those used last at the end: see `tile_key`."""
        with self._lock:
            return list(self._memories)

    def memory(self, support_id: str) -> Memory:
        """The memory of a stored set, computed if it is not here yet. Raises `UnknownSupportError`."""
        return self._stored(support_id).memory

    @torch.inference_mode()
    def seconds_a_photo(self, support_id: str, batch: int, rounds: int) -> float:
        """The least time of the model for a photo in a batch of black photos, over `rounds`, after one to warm up."""
        side, took = self.model.side, []
        images = Images(pixels=torch.zeros(batch, 3, side, side), sizes=torch.full((batch, 2), side))
        asked = [MaskRequest(support_ids=(support_id,))] * batch
        calls = whole_classes(asked, batch)
        for _ in range(rounds + 1):
            began = time.perf_counter()
            with self._lock:
                features = self.execution.encode(self.execution.upload(images))
                self._segment(calls[0], features, batch, asked).download.wait()
            took.append(time.perf_counter() - began)
        return min(took[1:]) / batch

    def _stored(self, support_id: str) -> StoredMemory:
        with self._lock:
            if support_id not in self._memories:
                set_id, tile = split_key(support_id)
                self.add_support(self._find(set_id), tile)
            self._memories.move_to_end(support_id)
            return self._memories[support_id]

    def _find(self, support_id: str) -> SupportSet:
        if self.supports_url:
            return load_support_set(self.supports_url, support_id)
        if support_id not in self._given:
            raise UnknownSupportError(support_id)
        return self._given[support_id]

    def with_tile(self, request: MaskRequest) -> MaskRequest:
        """The request as the labeler answers it: a number for `tile`, and the `tile_key`s of its support sets.

        Raises `FssError` for auto with a set whose marks tell no size of an object.
        """
        if request.tile != "auto":
            return at_tile(request)
        with self._lock:
            for support_id in request.support_ids:
                if support_id not in self._fitting:
                    self._fitting[support_id] = fitting_side(*self._find(support_id).decoded(), self.model.side)
            return at_tile(request, [self._fitting[i] for i in request.support_ids])

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
        self._stored(request.support_ids[0])
        return self._label(images, [request] * len(images), batch, fixed=True)

    def label_mixed(self, images: Sequence[bytes], requests: Sequence[MaskRequest],
                    batch: int = 8) -> list[Labels | PhotoFailure]:
        """As `label_classes`, but each photo has its own request: one batch may need many support sets.

        Small batches are padded to the next power of two only, since a person waits for the result.
        """
        return self._label(images, requests, batch, fixed=False)

    def _label(self, images: Sequence[bytes], requests: Sequence[MaskRequest], batch: int, *,
               fixed: bool) -> list[Labels | PhotoFailure]:
        asked = {request: self.with_tile(request) for request in dict.fromkeys(requests)}
        requests = [asked[request] for request in requests]
        tiled = [row for row, data in enumerate(images) if needs_tiles(data, requests[row])]
        found = {row: self._label_tiles(images[row], requests[row], batch) for row in tiled}
        whole = [row for row in range(len(images)) if row not in found]
        found |= zip(whole, self._label_whole([images[row] for row in whole], [requests[row] for row in whole], batch,
                                              fixed=fixed), strict=True)
        return [found[row] for row in range(len(images))]

    def _label_tiles(self, data: bytes, request: MaskRequest, batch: int) -> Labels | PhotoFailure:
        """The labels of a photo that is larger than a tile; its tiles are cut from all of its pixels."""
        try:
            photo = TiledPhoto(self._preparer.pixels(data), request, self.judge, corners=self._corners)
        except BadImage as error:
            return PhotoFailure(reason=error.reason)
        prepare = partial(self._preparer.tile, photo.pixels)
        for rows, prepared in self._decode.batches(prepare, photo.grid.windows, {}, batch):
            photo.add(self._run_tiles(self._preparer.stacked(prepared, batch), [request] * len(rows)))
        return photo.labels()

    @torch.inference_mode()
    def _run_tiles(self, images: Images, requests: list[MaskRequest]) -> list[CallOutput]:
        with self._lock:
            features = self.execution.encode(self.execution.upload(images))
            return [self._segment(call, features, len(images), requests)
                    for call in whole_classes(requests, len(images))]

    def _label_whole(self, images: Sequence[bytes], requests: Sequence[MaskRequest], batch: int, *,
                     fixed: bool) -> list[Labels | PhotoFailure]:
        """The labels of photos that the model sees as a whole."""
        failures: dict[int, PhotoFailure] = {}
        finishing: list[Future[list[Placed]]] = []
        with closing(self._encodings(images, failures, batch, fixed=fixed)) as encodings:
            for rows, sizes, width, encode in encodings:
                work = PhotoBatch(rows, [requests[r] for r in rows], sizes)
                finishing += self._run(work, encode, width, fixed=fixed)
        labels: dict[int, dict[int, Label]] = {}
        for future in finishing:
            for row, number, label in future.result():
                labels.setdefault(row, {})[number] = label
        results: dict[int, Labels | PhotoFailure] = {**failures}
        results |= {row: tuple(own[number] for number in sorted(own)) for row, own in labels.items()}
        return [results[row] for row in range(len(images))]

    def _encodings(self, images: Sequence[bytes], failures: dict[int, PhotoFailure], batch: int, *,
                   fixed: bool) -> Generator[tuple[list[int], Sizes, int, Encode]]:
        """For each batch: rows and sizes of its photos, its padded width, and what gives its features on the device.

        Unreadable photos are added to `failures`. With `fixed`, features are read from where they are kept, or kept.
        """
        if self.keeper and fixed:
            with self._kept.hold(2 * len(images) * self._kept_photo):  # the tensors, and their file
                yield from self._kept_encodings(self.keeper, images, failures, batch)
            return
        for rows, prepared in self._decode.batches(self._preparer.whole, images, failures, batch):
            width = batch if fixed else power_of_two(len(rows), batch)
            stacked = self._preparer.stacked(prepared, width)
            encode: Encode = partial(self.execution.encode, self.execution.upload(stacked))
            yield rows, sizes_of(stacked.sizes[:len(rows)]), width, encode

    def _kept_encodings(self, keeper: FeatureKeeper, images: Sequence[bytes], failures: dict[int, PhotoFailure],
                        batch: int) -> Iterator[tuple[list[int], Sizes, int, Encode]]:
        """`_encodings` of a job whose features are kept: as they were read, or new ones, which are written."""
        if kept := keeper.read(images, batch):
            failures |= kept.failures
            for first in range(0, len(kept.rows), batch):
                some = slice(first, first + batch)
                yield kept.rows[some], sizes_of(kept.sizes[some]), batch, partial(kept.batch, first, batch, self.device)
            return
        new = KeptPhotos([], torch.zeros(0, 2, dtype=torch.int64), {}, failures)
        for rows, prepared in self._decode.batches(self._preparer.whole, images, failures, batch):
            stacked = self._preparer.stacked(prepared, batch)
            encode = partial(self.execution.encode, self.execution.upload(stacked))
            sizes = stacked.sizes[:len(rows)]
            yield rows, sizes_of(sizes), batch, partial(self._rounded, encode, new, rows, sizes, len(images))
        if new.rows:
            keeper.write(images, batch, new)

    def _rounded(self, encode: Encode, new: KeptPhotos, rows: list[int], sizes: Tensor, most: int) -> Features:
        """Features rounded as they are kept; those of the photos, without padding, are added to the `most` of `new`."""
        features = encode()
        maps = half(features.maps, len(rows))
        new.add(rows, sizes, maps, most)
        return padded(maps, features.sizes[:len(rows)], len(features))

    @torch.inference_mode()
    def _run(self, work: PhotoBatch, encode: Encode, width: int, *, fixed: bool) -> list[Future[list[Placed]]]:
        """Start the labels of a batch of up to `width` photos. With `fixed` all photos have the same request."""
        requests, kept = work.requests, []
        finishing: list[Future[list[Placed]]] = []
        with self._lock:
            features = encode()
            for call in whole_classes(requests, width) if fixed else mixed_calls(requests, width):
                found = self._segment(call, features, width, requests)
                separate, shared = found.split(requests)
                if separate:
                    finishing.append(self._finish.submit(found.size, partial(self._separate, work, separate)))
                kept += shared
        if kept:
            size = sum({id(c.output): c.output.size for c in kept}.values())
            finishing.append(self._finish.submit(size, partial(self._resolve, work, kept)))
        return finishing

    def _segment(self, calls: list[Pair], features: Features, width: int, requests: list[MaskRequest]) -> CallOutput:
        """One call of the model for `calls`, padded to a multiple of `width` pairs or to a power of two below it."""
        unique = list(dict.fromkeys(pair.support_id for pair in calls))
        stored, which = [self._stored(i) for i in unique], [unique.index(pair.support_id) for pair in calls]
        memory = stored[0].memory if len(stored) == 1 else Memory.stack([s.memory for s in stored])
        size = len(calls) if len(calls) % width == 0 else power_of_two(len(calls), len(calls) * 2)
        pairs = torch.zeros(size, 2, dtype=torch.int64)
        pairs[: len(calls), 0] = torch.tensor(which)
        pairs[: len(calls), 1] = torch.tensor([pair.row for pair in calls])
        pairs[len(calls):, 1] = len(features) - 1
        pairs = self.execution.indices(pairs)
        found = self.execution.segment(memory, features, pairs)
        levels = [None if pair.padding else prompt_level(requests[pair.row]) for pair in calls]
        if any(level is not None for level in levels):
            with self.execution.autocast():
                found = add_prompted(self.model, found, memory, features, pairs,
                                     [*levels, *[None] * (size - len(calls))])
        known = [s.statistics for s in stored if s.statistics]
        more = [self.judge.measure_masks(found, features, pairs, known)] if self.judge else []
        download = self.execution.download([found.logits, found.scores, *more])
        return CallOutput(tuple(calls), download, tuple(known[i] for i in which) if self.judge else (),
                          found.instances)

    @torch.inference_mode()
    def _separate(self, work: PhotoBatch, masks: Sequence[PairMask]) -> list[Placed]:
        """The label of each mask alone."""
        placed = []
        for mask in masks:
            request, size = work.requests[mask.pair.row], work.sizes[mask.pair.row]
            logits, score, presence = mask.read(self.judge, request)
            empty = presence.status == "empty"
            rle = empty_mask(size) if empty else encode_logits(
                logits.numpy(), size, threshold_logit(request.threshold), corners=self._corners)
            label = with_instances(make_label(rle, score, presence), request, mask.instances, corners=self._corners)
            placed.append((work.rows[mask.pair.row], mask.pair.number, label))
        return placed

    @torch.inference_mode()
    def _resolve(self, work: PhotoBatch, masks: Sequence[PairMask]) -> list[Placed]:
        """A semantic map of each photo, cut into the masks of its classes."""
        placed = []
        for row in sorted({m.pair.row for m in masks}):
            own = sorted((m for m in masks if m.pair.row == row), key=lambda m: m.pair.number)
            read = [m.read(self.judge, work.requests[row]) for m in own]
            owner = semantic_map([logits for logits, _, _ in read], [mask_weight(s, p) for _, s, p in read],
                                 work.sizes[row], threshold_logit(work.requests[row].threshold), corners=self._corners)
            for number, (mask, (_, score, presence)) in enumerate(zip(own, read, strict=True), 1):
                rle = coco.encode((owner == number).astype(np.uint8, order="F"))
                label = with_instances(make_label(rle, score, presence), work.requests[row], mask.instances,
                                       corners=self._corners)
                placed.append((work.rows[row], mask.pair.number, label))
        return placed

    def check(self, request: MaskRequest) -> None:
        """Raises `FssError` if the method cannot give what the request asks for."""
        check_instances(type(self.model), request.instances)

    @property
    def _corners(self) -> bool:
        return self.model.corners_aligned

    @torch.inference_mode()
    def _memorise(self, supports: SupportSet, tile: int) -> StoredMemory:
        if self.info.bundle_id != self._bundle_id:  # not in __init__: Serve hides why a replica fails to start
            raise FssError(f"the bundle is {self.info.bundle_id} now, no longer {self._bundle_id}",
                           where=self._bundle_url,
                           hint="start the service again, or start a new job with another --out")
        check_reads(type(self.model), self.model.config, supports)
        images, prompts = supports.decoded()
        if tile:
            images, prompts = cut_supports(images, prompts, tile)
        prepared = self.model.prepare(images)
        marks = self.model.collate([prompts], prepared.sizes, names=[supports.phrase])
        features = self.execution.encode(self.execution.upload(prepared))
        judge, phrase = self.judge, supports.phrase
        self._kept_photo = sum(2 * v[0].numel() for v in features.maps.values())
        with self.execution.autocast():
            memory = self.model.memorise(features, marks.to(self.device))
            known = judge.describe_supports(features, prompts, memory, phrase) if judge else None
        return StoredMemory(memory, known, phrase)

    def _store(self, support_id: str, memory: StoredMemory) -> None:
        self._memories[support_id] = memory
        while len(self._memories) > self._max_memories:
            self._memories.popitem(last=False)
