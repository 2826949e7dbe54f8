"""`EpisodeStream`: endless decoded training clips, read from class blocks in background threads.

Episodes are a pure function of (seed, epoch, window, index). The position after the last batch that was returned is a
small dict in the checkpoint, and a stream that starts from it continues identically. Every rank reads the same windows
and decodes only its share of each global batch.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from fss_models.errors import FssError
from pipelines.base.limits import usable_cores
from pipelines.data.pixels import SampleReader
from pipelines.data.plan import Block, EpisodePlan, Place, Sampler, StreamPlan
from pipelines.data.schema import EpisodeSample, PhotoKey, Sample
from pipelines.data.shardset import Shards

LOADERS = 6  # threads that load blocks; they mostly wait for storage
PREFETCHED_BATCHES = 3  # global batches that are decoded in advance
Position = dict[str, int | str]
_Work = tuple[EpisodePlan, str, dict[int, pa.Table]]  # an episode, the name of its class, the blocks of its window
_Batch = tuple[list[Future[list[EpisodeSample]]], Position]  # one part per decoder thread, the position afterwards


def decoder_threads() -> int:
    """Number of decoder threads: one for every two logical CPUs (often one core with hyperthreads), at most eight."""
    return max(1, min(8, usable_cores() // 2))


@dataclass(frozen=True, kw_only=True)
class UndecodedSample(Sample):
    """A sample whose photo was not decoded: `image` is [H, W, 0], and `photo` identifies its kept features."""

    photo: PhotoKey


class EpisodeStream:
    """An endless iterator over this rank's share of each global batch. Close it, or use it as a context manager.

    classes: ids of the classes of queries and supports; novel: ids of the classes whose photos are left out with
    `novel_images="drop"`; batch: clips of a global batch, a multiple of `world`; pool_bytes: upper bound on the image
    bytes of the blocks in memory; decode: if false, photos are neither read nor decoded, and the samples of the same
    episodes are `UndecodedSample`; pixel_bytes: upper bound on cached pixels and masks; side: side in pixels of square
    samples, 0 for whole photos (`SampleReader`).
    Raises `FssError` for settings that leave nothing to train on and for a position of another stream.
    """

    def __init__(
        self, shards_url: str, *, classes: Collection[int], novel: Collection[int] = (), shots: int = 1,
        targets: int = 1, batch: int, seed: int, rank: int = 0, world: int = 1,
        novel_images: Literal["drop", "keep"] = "drop", pool_bytes: int = 512_000_000,
        position: Position | None = None, sampler: Sampler = "balanced", decode: bool = True,
        pixel_bytes: int = 256_000_000, side: int = 0,
    ) -> None:
        if batch % world:
            raise FssError(f"train.batch={batch} cannot be shared by {world} workers",
                           hint=f"make it a multiple of {world}")
        self.shards = Shards(shards_url)
        blocks = usable_blocks(self.shards, classes, set(novel) if novel_images == "drop" else set())
        self.plan = StreamPlan(blocks, shots=shots, targets=targets, seed=seed, pool_bytes=pool_bytes, sampler=sampler)
        self._batch, self._rank, self._world = batch, rank, world
        self._position = self._start(position)
        self._ready: queue.Queue[_Batch | Exception] = queue.Queue(PREFETCHED_BATCHES)
        self._stop = threading.Event()
        self._threads = decoder_threads()
        self._decoders = ThreadPoolExecutor(self._threads, thread_name_prefix="decode")
        self._pool = _BlockPool(self.shards, self.plan, decode)
        self._index = None if decode else self.shards.rows
        self._read = SampleReader(pixel_bytes, side)
        self._producer = threading.Thread(target=self._produce, args=(dict(self._position),), daemon=True)
        self._producer.start()

    @property
    def position(self) -> Position:
        """The position after the last batch that was returned: {"epoch", "window", "index", "plan"}."""
        return dict(self._position)

    @property
    def class_ids(self) -> list[int]:
        """Ids of the classes that have at least two usable photos."""
        return list(self.plan.by_class)

    def __iter__(self) -> Iterator[list[EpisodeSample]]:
        return self

    def __next__(self) -> list[EpisodeSample]:
        if self._stop.is_set():
            raise StopIteration
        item = self._ready.get()
        if isinstance(item, Exception):
            self.close()
            raise item
        parts, after = item
        samples = [sample for part in parts for sample in part.result()]
        self._position = after
        return samples

    def close(self) -> None:
        """Stop the threads and free the pool. It may be called twice."""
        self._stop.set()
        while self._producer.is_alive():
            try:
                self._ready.get_nowait()
            except queue.Empty:
                self._producer.join(0.02)
        self._decoders.shutdown(wait=False, cancel_futures=True)
        self._pool.close()

    def __enter__(self) -> EpisodeStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, position: Position | None) -> Position:
        if position is None:
            return {"epoch": 0, "window": 0, "index": 0, "plan": self.plan.fingerprint}
        if position.get("plan") != self.plan.fingerprint:
            raise FssError("the checkpoint's position in the data belongs to another dataset, fold, seed or pool size",
                           where=self.shards.url, hint="resume with the same recipe, or start a new run")
        return dict(position)

    # ---- the producer's thread ------------------------------------------------------------------------------------

    def _produce(self, position: Position) -> None:
        decode = partial(_decode, self._read, index=self._index)
        try:
            episodes = self._episodes(int(position["epoch"]), int(position["window"]), int(position["index"]))
            while not self._stop.is_set():
                group = [next(episodes) for _ in range(self._batch)]
                share = [work for work, _ in group[self._rank :: self._world]]
                size = -(-len(share) // self._threads)
                parts = [share[at : at + size] for at in range(0, len(share), size)]
                self._put(([self._decoders.submit(decode, part) for part in parts], group[-1][1]))
        except Exception as error:
            if not self._stop.is_set():
                self._put(error)

    def _put(self, item: _Batch | Exception) -> None:
        while not self._stop.is_set():
            try:
                return self._ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def _episodes(self, epoch: int, window: int, index: int) -> Iterator[tuple[_Work, Position]]:
        """Endless pairs of an episode as `_decode` reads it and the position after it."""
        while True:
            windows = self.plan.windows(epoch)
            if window >= len(windows):
                epoch, window = epoch + 1, 0
                continue
            following = windows[window + 1] if window + 1 < len(windows) else self.plan.windows(epoch + 1)[0]
            tables = self._pool.load(windows[window].blocks, following.blocks)
            for i in range(index, len(windows[window])):
                spec = self.plan.episode(epoch, window, i)
                after: Position = {"epoch": epoch, "window": window, "index": i + 1, "plan": self.plan.fingerprint}
                yield (spec, self.shards.classes[spec.class_id].name, tables), after
            window, index = window + 1, 0


class _BlockPool:
    """The blocks in memory: those of the window in use, and those of the next one, which are loading."""

    def __init__(self, shards: Shards, plan: StreamPlan, decode: bool) -> None:
        self._shards, self._plan, self._decode = shards, plan, decode
        self._tables: dict[int, Future[pa.Table]] = {}
        self._loader = ThreadPoolExecutor(LOADERS, thread_name_prefix="blocks")

    def load(self, now: set[int], following: set[int]) -> dict[int, pa.Table]:
        """Wait for the blocks `now`, begin to load the blocks `following`, and free all others."""
        self._tables = {b: f for b, f in self._tables.items() if b in now or b in following}
        for block in (*sorted(now), *sorted(following - now)):
            if block not in self._tables:
                about = self._plan.blocks[block]
                self._tables[block] = self._loader.submit(read_block, self._shards, about, self._decode)
        return {b: self._tables[b].result() for b in now}

    def close(self) -> None:
        self._tables = {}
        self._loader.shutdown(wait=False, cancel_futures=True)


def read_block(shards: Shards, block: Block, images: bool = True) -> pa.Table:
    """The rows of a block. If `images` is false, the image bytes are not read."""
    with shards.store.open_parquet(block.file) as file:
        names = [n for n in file.schema_arrow.names if n != "image" or images]
        return file.read_row_group(block.row_group, columns=names)


def usable_blocks(shards: Shards, classes: Collection[int], avoid: set[int]) -> list[Block]:
    """The training blocks of some classes, with the rows whose photo shows no class of `avoid` (at any size).

    Of the rows of a class whose photos have the same content only the first is used (`Shards.copies`). Raises
    `FssError` for a class that the shards do not have.
    """
    for unknown in sorted(set(classes) - shards.classes.keys()):
        raise FssError(f"these shards have no class {unknown}", where=shards.url,
                       hint=f"classes: {sorted(shards.classes)}")
    clean = {i for i, row in shards.rows.items() if not avoid.intersection(row["class_ids"])}
    found = [b for b in shards.block_index.to_pylist() if b["class_id"] in classes]
    in_class: dict[int, list[int]] = {}
    for b in found:
        in_class.setdefault(b["class_id"], []).extend(b["image_ids"])
    single = {c: set(shards.without_copies(i for i in images if i in clean)) for c, images in in_class.items()}
    return [
        Block(class_id=b["class_id"], file=b["file"], row_group=b["row_group"], bytes=b["bytes"],
              rows=tuple(r for r, image in enumerate(b["image_ids"]) if image in single[b["class_id"]]),
              images=tuple(image for image in b["image_ids"] if image in single[b["class_id"]]))
        for b in found
    ]


def _decode(read: SampleReader, part: Sequence[_Work], index: dict[int, dict[str, Any]] | None) -> list[EpisodeSample]:
    """The decoded episodes of `part`. If `index` (image id -> row) is given, the samples are `UndecodedSample`."""
    episodes = []
    for spec, class_name, tables in part:
        places = (*spec.references, *spec.targets)
        samples: list[Sample] = (
            read(tables, places) if index is None else [_undecoded(read, tables, p, index) for p in places])
        shots = len(spec.references)
        episodes.append(EpisodeSample(class_id=spec.class_id, class_name=class_name, references=samples[:shots],
                                      targets=samples[shots:]))
    return episodes


def _undecoded(read: SampleReader, tables: dict[int, pa.Table], place: Place,
               index: dict[int, dict[str, Any]]) -> UndecodedSample:
    masks = read.masks(tables, place)
    row = index[masks.image_id]
    if masks.size != (row["height"], row["width"]):
        raise FssError("features are kept for whole photos only; this sample is a crop", hint="set train.features=off")
    return UndecodedSample(image_id=masks.image_id, image=np.empty((*masks.mask.shape, 0), np.uint8), mask=masks.mask,
                           ignore=masks.ignore, size=masks.size if read.side else None, whole=masks.whole,
                           photo=PhotoKey(row["sha256"], row["height"], row["width"]))
