"""`fss label --watch`: a job that goes on, and labels photos as they arrive under a folder or prefix.

Arrived photos are taken in batches: the listing grows (`arrivals`), then the manifest says how many photos there are,
then the batch is labelled like any job's chunks, with one model for all batches. A new batch is taken when the last one
is done, so that of all parts only the one that holds the last batch's first photo may lack some; it is completed.
Killed anywhere, the next run goes on from the listing, the manifest and the parts.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fss_models.errors import FssError
from pipelines.base.progress import say
from pipelines.base.storage import Store
from pipelines.base.webhook import told_if_it_fails
from pipelines.labelling.arrivals import Arrivals, Arrived
from pipelines.labelling.engines import Engine
from pipelines.labelling.images import keep_unread, within
from pipelines.labelling.inputs import SPECIAL, Inputs, read_inputs
from pipelines.labelling.job import LabellingJob
from pipelines.labelling.manifest import MANIFEST, PLAIN, JobManifest, claim_folder
from pipelines.labelling.notify import JobEvents
from pipelines.labelling.outputs import FAILED, SUMMARY, write_outputs
from pipelines.labelling.parts import finished_chunks, part_name
from pipelines.labelling.run import BegunJob, LabelRequest, begin, describe_job, job_engine
from pipelines.labelling.settle import settle

LOCK = ".watch.lock"
SHARE = 0.1  # of the time, at most, is spent on writing the outputs again: they hold all photos
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _BatchStoppedError(Exception):
    """The watch was told to stop."""


@dataclass(frozen=True)
class WatchedJob(LabellingJob):
    """A job whose last part may lack photos. again: photos that have labels and get new ones, counted from 0."""

    again: frozenset[int] = frozenset()

    def rows(self, chunk: int) -> Sequence[int]:
        """The photos of a chunk that its part lacks, and those to label again."""
        wanted, has = self.manifest.rows(chunk), set[int]()
        may_have = chunk == self._first or not self.again.isdisjoint(wanted)
        if may_have and self.out.exists(part_name(chunk)):
            has = {i - 1 for i in self.out.read_table(part_name(chunk), ["image_id"])["image_id"].to_pylist()}
        return [row for row in wanted if row not in has or row in self.again]

    def chunks_left(self) -> list[int]:
        """The chunks with photos to label."""
        done, first = finished_chunks(self.out), self._first
        new = {c for c in range(first, self.manifest.chunks) if c not in done or (c == first and self.rows(c))}
        return sorted(new | {row // self.manifest.chunk for row in self.again})

    @property
    def _first(self) -> int:
        """The first chunk of the last batch, whose part may have photos of earlier ones."""
        return self.manifest.before // self.manifest.chunk


def run_watch(request: LabelRequest, *, every: float, relabel: bool = False,
              stop: threading.Event | None = None) -> dict[str, Any]:
    """Label photos as they arrive, until SIGINT, SIGTERM or `stop`. Returns the summary of the outputs, {} without any.

    every: seconds between two looks; relabel: photos that were overwritten are labelled again. Raises `FssError` for a
    person's mistakes, and when the photos, the folder or the service cannot be reached for long.
    """
    inputs = _read_place(request)
    begun = begin(request)
    with _alone(begun.out), _set_by_signals(stop or threading.Event()) as stop:
        return _Watch(begun, inputs, relabel=relabel, stop=stop).run(every)


class _Watch:
    """The state of a watch: its listing, its manifest, and when its outputs were written."""

    def __init__(self, begun: BegunJob, inputs: Inputs, *, relabel: bool, stop: threading.Event) -> None:
        self.out, self.stop = begun.out, stop
        skipped = within(inputs.root, begun.out)
        self.arrivals = Arrivals(begun.out, inputs, relabel=relabel, skipped=[skipped] if skipped else [])
        recipe, images = begun.request.recipe, self.arrivals.images
        config, measured = settle(recipe.label, begun.health, classes=begun.classes, images=images, data=recipe.data,
                                  bundle="" if begun.health else begun.request.bundle_url)
        self.recipe = recipe.model_copy(update={"label": config})
        self.begun = replace(begun, request=replace(begun.request, recipe=self.recipe))
        self.manifest = describe_job(self.recipe, begun.about, images, begun.classes, 0, measured).model_copy(
            update={"watched": True})
        if claim_folder(self.out, self.manifest):
            self.manifest = JobManifest.model_validate(self.out.read_json(MANIFEST))
        self.summary: dict[str, Any] = self.out.read_json(SUMMARY) if self.out.exists(SUMMARY) else {}
        self.due = True  # the outputs may lack photos
        self.wrote, self.took, self.told = 0.0, 0.0, (0, 0)

    def run(self, every: float) -> dict[str, Any]:
        """Look, label and wait, until it is told to stop."""
        begun, arrived = self.begun, Arrived()
        events = JobEvents(self.out, self.manifest, self.recipe.label.notify)
        with told_if_it_fails(events.ended), \
                job_engine(self._job(), begun.classes, begun.service, begun.health, begun.request) as engine:
            say(f"watching {self.arrivals.images.url} every {every:g} s; Ctrl-C ends it")
            left = self._label(engine, events)
            while not left and not self.stop.is_set():
                began = time.monotonic()
                arrived = self.arrivals.look()
                self._say(arrived)
                if arrived.new or arrived.changed:
                    self.arrivals.take(arrived)
                    left = self._label(engine, events)
                if not left and self._may_write():
                    self._write(events, arrived)
                self.stop.wait(max(0.0, every - (time.monotonic() - began)))
            if not left and self.due:
                self._write(events, arrived)
        events.ended("stopped")
        say(f"stopped; the same command goes on{f', {left} photos of the last batch wait' if left else ''}")
        return self.summary

    def _job(self, again: frozenset[int] = frozenset()) -> WatchedJob:
        return WatchedJob(self.out, self.arrivals.images, self.manifest, again,
                          max_seconds=self.recipe.data.max_seconds)

    def _label(self, engine: Engine, events: JobEvents) -> int:
        """Label what was taken. Returns the photos that are left, if it was told to stop."""
        again = self.arrivals.begin_relabelling()
        images, known = self.arrivals.images, self.manifest
        if len(images) != known.images_count or images.hash != known.images_hash:
            self.manifest = known.model_copy(update={"before": known.images_count, "images_count": len(images),
                                                     "images_hash": images.hash})
            self.out.write_json(MANIFEST, self.manifest.content())
            events.manifest = self.manifest
        job = self._job(again)
        if left := job.chunks_left():
            self.due = True
            try:
                job.run(engine, left, self.recipe.label.in_flight, self._check_stop)
            except _BatchStoppedError:
                if waiting := sum(len(job.rows(c)) for c in job.chunks_left()):
                    return waiting
        self.arrivals.end_relabelling()
        return 0

    def _check_stop(self, _done: int, _failed: int) -> None:
        if self.stop.is_set():
            raise _BatchStoppedError

    def _may_write(self) -> bool:
        return self.due and bool(len(self.arrivals.images)) and (
            not self.wrote or self.took <= SHARE * (time.monotonic() - self.wrote))

    def _write(self, events: JobEvents, arrived: Arrived) -> None:
        """Write the outputs, which hold all photos, and tell of them."""
        images, began = self.arrivals.images, time.monotonic()
        if not len(images):
            return
        images.totals.unread = arrived.unread
        keep_unread(self.out, images)
        self.summary = write_outputs(self.out, self.manifest, self.recipe.label.formats)
        self.arrivals.unreadable = frozenset(self.out.read_table(FAILED, ["file_name"])["file_name"].to_pylist())
        self.due, self.wrote = False, time.monotonic()
        self.took = self.wrote - began
        say(f"{self.summary['labels']} has {len(images):,} photos")
        events.done(self.summary, key=f"done-{images.totals.seen}")

    def _say(self, arrived: Arrived) -> None:
        news = len(arrived.new) + len(arrived.changed)
        if news or (arrived.waiting, arrived.overwritten) != self.told:
            lines = [f"{len(arrived.new):,} new photos"] if arrived.new else []
            lines += [f"{len(arrived.changed):,} overwritten ones to label again"] if arrived.changed else []
            lines += [f"{arrived.waiting:,} wait for the next look"] if arrived.waiting else []
            lines += [f"{arrived.overwritten:,} were overwritten and keep their labels (--relabel labels them again)"
                      ] if arrived.overwritten else []
            if lines:
                say("; ".join(lines))
        self.told = (arrived.waiting, arrived.overwritten)


def _read_place(request: LabelRequest) -> Inputs:
    """What is watched. Raises `FssError` for what cannot be, and for settings that do not fit."""
    config = request.recipe.label
    for wrong, what in ((request.limit, "--limit"), (request.engine == "actors", "--engine actors"),
                        (config.preprocessing == "auto", "label.preprocessing auto"),
                        (config.existing, "label.existing"),
                        (config.features == "keep", "label.features keep")):
        if wrong:
            raise FssError(f"{what} is not for --watch", hint="leave it out")
    root = Store(request.images)
    if not root.is_local and not SPECIAL.search(request.images):
        return Inputs("folder", root)  # a prefix without an object does not exist yet
    inputs = read_inputs(request.images)
    if inputs.kind not in PLAIN:
        raise FssError(f"a {inputs.kind} of photos cannot be watched", where=request.images,
                       hint="give a folder, a prefix or a pattern of names")
    return inputs


@contextmanager
def _alone(out: Store) -> Iterator[None]:
    """Raises `FssError` if another process watches into the folder; in a bucket it is found when it takes photos."""
    if not out.is_local:
        yield
        return
    Path(out.url).mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out.path(LOCK), timeout=0):
            yield
    except Timeout as error:
        raise FssError("another `fss label --watch` labels into this folder", where=out.url,
                       hint="stop it, or choose another --out") from error


@contextmanager
def _set_by_signals(stop: threading.Event) -> Iterator[threading.Event]:
    """The event, which the first SIGINT or SIGTERM sets; the second one interrupts. Signals are for the main thread."""

    def on_signal(*_: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        say("stopping when the photos in hand are labelled; again: at once")

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, on_signal) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
