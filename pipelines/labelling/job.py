"""The labelling job: chunks without a part are read, labelled and written, a few at a time, until none is left."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol, TypeVar

from fss_models.limits import PhotoLimits
from pipelines.base.progress import Bar
from pipelines.base.storage import Store
from pipelines.config.mask_request import MaskRequest
from pipelines.inference.decode_limit import stuck_photos
from pipelines.inference.masks import Labels, PhotoFailure
from pipelines.labelling.engines import Engine, WorkerLostError
from pipelines.labelling.existing import ExistingLabels
from pipelines.labelling.images import ImageList, PhotoReader
from pipelines.labelling.manifest import JobManifest
from pipelines.labelling.parts import finished_chunks, write_part, write_rows

OnProgress = Callable[[int, int], None]  # (photos done in all, unreadable photos of the last chunk)
T = TypeVar("T")
READERS = 8  # threads that read photos; they mostly wait for the store


@dataclass(frozen=True)
class LabellingJob:
    """A job: its claimed output folder, its photos and its manifest."""

    out: Store
    images: ImageList
    manifest: JobManifest
    max_seconds: float = field(default=60, kw_only=True)  # for decoding one photo
    existing: ExistingLabels | None = field(default=None, kw_only=True)  # annotations that are there already

    def chunks_left(self) -> list[int]:
        """The chunks without a part."""
        done = finished_chunks(self.out)
        return [c for c in range(self.manifest.chunks) if c not in done]

    def rows(self, chunk: int) -> Sequence[int]:
        """The photos of a chunk that are to be labelled, counted from 0."""
        return self.manifest.rows(chunk)

    def run(self, engine: Engine, left: list[int], in_flight: int,
            on_progress: OnProgress | None = None) -> int:
        """Label the chunks `left`, at most `in_flight` at a time. Returns their number of photos.

        `on_progress` is called after each chunk; an exception that it raises ends the work.
        """
        todo = sum(len(self.rows(c)) for c in left)
        reader = PhotoReader(self.images, max_bytes=self.manifest.max_bytes, threads=READERS)
        done = len(self.images) - todo
        pool = ThreadPoolExecutor(in_flight, thread_name_prefix="chunk")
        try:
            with Bar("label", len(self.images), unit="images", done=done) as bar:
                for count, failed in _as_they_come(pool, lambda c: self.label_chunk(c, engine, reader), left,
                                                   2 * in_flight):
                    bar.step(count)
                    if on_progress:
                        on_progress(bar.done, failed)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            reader.close()
        return todo

    def label_chunk(self, chunk: int, engine: Engine, reader: PhotoReader) -> tuple[int, int]:
        """Label a chunk and write its part. Returns its number of photos, and how many of them could not be read."""
        rows = self.rows(chunk)
        if self.existing is not None:
            return len(rows), self._label_what_is_missing(chunk, self.existing, engine, reader)
        results = label_rows(rows, engine, reader, self.manifest, self.max_seconds)
        merge = len(rows) < len(self.manifest.rows(chunk))
        write_part(self.out, chunk, self.images, rows, self.manifest, results, merge=merge)
        return len(rows), sum(isinstance(r, PhotoFailure) for r in results)

    def _label_what_is_missing(self, chunk: int, existing: ExistingLabels, engine: Engine, reader: PhotoReader) -> int:
        """Write a part with existing labels in it. Returns the number of photos that could not be read."""
        rows = self.manifest.rows(chunk)
        known = existing.read(rows, reader, self.manifest)
        left = [row for row in rows if not existing.is_whole(known.get(row), self.manifest)]
        labelled = label_rows(left, engine, reader, self.manifest, self.max_seconds)
        results: dict[int, Labels | PhotoFailure] = dict(zip(left, labelled, strict=True))
        found = [existing.rows(known.get(row), results.get(row), self.manifest) for row in rows]
        write_rows(self.out, chunk, self.images, rows, self.manifest, found)
        return sum(own[0].get("error") is not None for own in found)


def _as_they_come(pool: ThreadPoolExecutor, call: Callable[[int], T], items: Iterable[int], most: int) -> Iterator[T]:
    """The result of each call as soon as it is there; at most `most` calls run or wait for a thread."""
    todo = iter(items)
    running = {pool.submit(call, one) for one in islice(todo, most)}
    while running:
        done, running = wait(running, return_when=FIRST_COMPLETED)
        running |= {pool.submit(call, one) for one in islice(todo, len(done))}
        yield from (future.result() for future in done)


class RowReader(Protocol):
    """Reads the photos of rows, which are numbers that only it knows the meaning of."""

    def read(self, rows: Sequence[int]) -> list[bytes | PhotoFailure]:
        """For each row, in order: the photo's bytes, or why it cannot be read."""


class RowSettings(Protocol):
    """How rows are labelled; a job's manifest has it."""

    @property
    def batch(self) -> int:
        """Photos that are read and sent together."""

    @property
    def mask_request(self) -> MaskRequest:
        """The classes and the masks that are wanted."""

    @property
    def max_pixels(self) -> int:
        """As in `PhotoLimits`."""

    @property
    def max_bytes(self) -> int:
        """As in `PhotoLimits`."""


def label_rows(rows: Sequence[int], engine: Engine, reader: RowReader, manifest: RowSettings,
               max_seconds: float = 60) -> list[Labels | PhotoFailure]:
    """One result for each row. Only readable photos are sent to the engine; a large chunk is sent in pieces."""
    results: dict[int, Labels | PhotoFailure] = {}
    for piece in _pieces(rows, engine, reader, manifest.batch):
        sent = {row: data for row, data in piece.items() if isinstance(data, bytes)}
        results.update({row: data for row, data in piece.items() if isinstance(data, PhotoFailure)})
        results.update(_label_sent(sent, engine, manifest, max_seconds))
    return [results[row] for row in rows]


def _label_sent(sent: dict[int, bytes], engine: Engine, manifest: RowSettings,
                max_seconds: float) -> dict[int, Labels | PhotoFailure]:
    """The results of the engine. Photos that its workers died of are failures, the others are labelled without them."""
    if not sent:
        return {}
    try:
        return dict(zip(sent, engine.label(list(sent.values()), manifest.mask_request), strict=True))
    except WorkerLostError:
        limits = PhotoLimits(max_pixels=manifest.max_pixels, max_bytes=manifest.max_bytes)
        stuck = stuck_photos(sent, limits, max_seconds)
    left = {row: data for row, data in sent.items() if row not in stuck}
    found = engine.label(list(left.values()), manifest.mask_request, checked=True) if left else []
    failed = {row: PhotoFailure(reason=reason, stage="decode") for row, reason in stuck.items()}
    return {**failed, **dict(zip(left, found, strict=True))}


def _pieces(rows: Sequence[int], engine: Engine, reader: RowReader,
            batch: int) -> Iterator[dict[int, bytes | PhotoFailure]]:
    """Pieces of the chunk that fit into one request, made of whole batches; usually one piece.

    A photo that is larger than that goes alone, unless the engine cannot send it at all.
    """
    waiting: dict[int, bytes | PhotoFailure] = {}
    size = 0
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        for row, data in zip(part, reader.read(part), strict=True):
            if isinstance(data, bytes) and len(data) > engine.photo_bytes:
                data = PhotoFailure(reason=f"{len(data)} bytes are more than a request of the service may hold "
                                    f"({engine.photo_bytes}; serve.max_request_bytes)", stage="send")
            more = len(data) if isinstance(data, bytes) else 0
            if waiting and size + more > engine.request_bytes:
                yield waiting
                waiting, size = {}, 0
            waiting[row], size = data, size + more
    if waiting:
        yield waiting
