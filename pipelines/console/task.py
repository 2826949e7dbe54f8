"""A job at work: a Ray task of the service that labels what is left, tells how far it is and looks whether to stop."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Any

from fss_models.errors import FssError
from pipelines.base.cluster import error_line
from pipelines.base.storage import Store
from pipelines.config.recipe import Recipe
from pipelines.console.records import JobRecord, JobRecords, Progress
from pipelines.labelling.engines import LocalEngine
from pipelines.labelling.images import list_images
from pipelines.labelling.job import LabellingJob
from pipelines.labelling.manifest import MANIFEST, JobManifest
from pipelines.labelling.outputs import SUMMARY, write_outputs
from pipelines.labelling.parts import finished_chunks
from pipelines.review.redo import resume

BEAT_S = 2.0


class _StoppedError(Exception):
    """Somebody asked the job to stop."""


class ProgressWriter:
    """Writes the progress every `BEAT_S` seconds from a thread, so that a slow chunk is no silence."""

    def __init__(self, board: JobRecords, job_id: str, done: int) -> None:
        self._board, self._id, self._first = board, job_id, done
        self._now = Progress(state="running", done=done, failed=board.progress(job_id).failed)
        self._began, self._end = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> ProgressWriter:
        self._board.tell(self._id, self._now)
        self._thread.start()
        return self

    def watch(self, done: int, failed: int) -> None:
        """A chunk is done. Raises if somebody wants the job to stop. The rate leaves the model's start out."""
        now = time.monotonic()
        if not self._began:
            self._began, self._first = now, done
        rate = (done - self._first) / (now - self._began) if now > self._began else 0.0
        self._now = self._now.model_copy(update={"done": done, "failed": self._now.failed + failed, "rate": rate})
        if self._board.stopping(self._id):
            raise _StoppedError

    def finish(self, done: int, failed: int) -> None:
        """All is written."""
        self._now = self._now.model_copy(update={"state": "done", "done": done, "failed": failed})

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> bool:
        self._end.set()
        self._thread.join()
        if isinstance(error, _StoppedError):
            self._now = self._now.model_copy(update={"state": "stopped"})
        elif error is not None:
            line = error_line(error) if isinstance(error, FssError) else f"{type(error).__name__}: {error}"
            self._now = self._now.model_copy(update={"state": "failed", "error": " ".join(line.split())[:500]})
        self._board.tell(self._id, self._now)
        return isinstance(error, Exception)  # it is told: no further trace in the cluster's log

    def _beat(self) -> None:
        while not self._end.wait(BEAT_S):
            with suppress(FssError):  # the store was away: the next beat tells it
                self._board.tell(self._id, self._now)


def run_job_task(workspace: str, record: JobRecord, recipe: Recipe, supports_url: str, handle: Any) -> None:
    """Do what is left of the job through the handle of the service's bulk deployment, then write the outputs."""
    board, out = JobRecords(workspace), Store(record.out)
    manifest = JobManifest.model_validate(out.read_json(MANIFEST))
    done = sum(len(manifest.rows(c)) for c in finished_chunks(out))
    with ProgressWriter(board, record.job_id, done) as told:
        job = resume(out, supports_url)[0] if record.origin else _job(out, manifest)
        if left := job.left():
            job.run(LocalEngine(handle), left, recipe.label.in_flight, told.watch)
        if left or not out.exists(SUMMARY):
            write_outputs(out, manifest)
        told.finish(manifest.images_count, int(out.read_json(SUMMARY)["failed"]))


def _job(out: Store, manifest: JobManifest) -> LabellingJob:
    images = list_images(manifest.images_url, manifest.limit)
    if images.hash != manifest.images_hash:
        raise FssError("photos were added, removed or changed since the job began", where=images.url,
                       mend="start a new one")
    return LabellingJob(out, images, manifest)
