"""The Ray task of a job: it labels the remaining chunks, writes its progress, and stops when it is told to."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Any

from fss_models.errors import FssError
from pipelines.base.outcome import error_line
from pipelines.base.storage import Store
from pipelines.config.recipe import Recipe
from pipelines.console.records import JobRecord, JobRecords, Progress
from pipelines.labelling.engines import LocalEngine
from pipelines.labelling.images import list_images
from pipelines.labelling.job import LabellingJob
from pipelines.labelling.listing import read_listing
from pipelines.labelling.manifest import MANIFEST, JobManifest
from pipelines.labelling.notify import JobEvents
from pipelines.labelling.outputs import SUMMARY, write_outputs
from pipelines.labelling.parts import finished_chunks
from pipelines.review.redo import resume_redo

BEAT_S = 2.0  # seconds between two writes of the progress


class _StoppedError(Exception):
    """The job was told to stop."""


class ProgressWriter:
    """Writes a job's progress, `now`, every `BEAT_S` seconds from a thread, also during a slow chunk."""

    def __init__(self, records: JobRecords, job_id: str, done: int) -> None:
        self._records, self._id, self._first = records, job_id, done
        self.now = Progress(state="running", done=done, failed=records.progress(job_id).failed)
        self._began, self._end = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> ProgressWriter:
        self._records.write_progress(self._id, self.now)
        self._thread.start()
        return self

    def update(self, done: int, failed: int) -> None:
        """A chunk is done; `done` photos in all, `failed` of the chunk. Raises if the job was told to stop.

        The rate does not include the start of the model.
        """
        now = time.monotonic()
        if not self._began:
            self._began, self._first = now, done
        rate = (done - self._first) / (now - self._began) if now > self._began else 0.0
        self.now = self.now.model_copy(update={"done": done, "failed": self.now.failed + failed, "rate": rate})
        if self._records.stop_requested(self._id):
            raise _StoppedError

    def finish(self, done: int, failed: int) -> None:
        """The outputs are written: set the final numbers of photos."""
        self.now = self.now.model_copy(update={"state": "done", "done": done, "failed": failed})

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> bool:
        self._end.set()
        self._thread.join()
        if isinstance(error, _StoppedError):
            self.now = self.now.model_copy(update={"state": "stopped"})
        elif error is not None:
            line = error_line(error) if isinstance(error, FssError) else f"{type(error).__name__}: {error}"
            self.now = self.now.model_copy(update={"state": "failed", "error": " ".join(line.split())[:500]})
        self._records.write_progress(self._id, self.now)
        return isinstance(error, Exception)  # the record has it: no trace in the cluster's log

    def _beat(self) -> None:
        while not self._end.wait(BEAT_S):
            with suppress(FssError):  # the store did not answer: the next beat writes it
                self._records.write_progress(self._id, self.now)


def run_job_task(workspace: str, record: JobRecord, recipe: Recipe, supports_url: str, handle: Any) -> None:
    """Label the remaining chunks with the service's bulk deployment, whose handle is given, and write the outputs."""
    records, out = JobRecords(workspace), Store(record.out)
    manifest = JobManifest.model_validate(out.read_json(MANIFEST))
    done = sum(len(manifest.rows(c)) for c in finished_chunks(out))
    with ProgressWriter(records, record.job_id, done) as progress:
        job = resume_redo(out, supports_url)[0] if record.origin else _job(out, manifest, recipe)
        if left := job.chunks_left():
            job.run(LocalEngine(handle, manifest.bundle_id), left, recipe.label.in_flight, progress.update)
        if left or not out.exists(SUMMARY):
            write_outputs(out, manifest)
        progress.finish(manifest.images_count, int(out.read_json(SUMMARY)["failed"]))
    _tell(JobEvents(out, manifest, recipe.label.notify), progress.now, out)


def _tell(events: JobEvents, now: Progress, out: Store) -> None:
    """Tell of the end of the job, after its progress says the same to those who ask."""
    with suppress(FssError):  # the store is away
        if now.state == "done":
            events.done(out.read_json(SUMMARY))
        elif now.state in ("stopped", "failed"):
            events.ended(now.state, now.error)


def _job(out: Store, manifest: JobManifest, recipe: Recipe) -> LabellingJob:
    images = read_listing(out) or list_images(manifest.images_url, manifest.limit)
    if images.hash != manifest.images_hash:
        raise FssError("photos were added, removed or changed since the job began", where=images.url,
                       hint="start a new job")
    return LabellingJob(out, images, manifest, max_seconds=recipe.data.max_seconds)
