"""Starting, stopping and going on with jobs, and their labels by doubt. Blocking: the service calls it in threads."""

from __future__ import annotations

import hashlib
import io
import shlex
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from fss_models.errors import FssError
from pipelines.base.storage import Store, join
from pipelines.console.records import (
    LABEL_SET,
    JobRecord,
    JobRecords,
    JobRequest,
    Progress,
    check_place,
    job_name,
    job_recipe,
    label_command,
)
from pipelines.console.task import run_job_task
from pipelines.inference.marks import mask_from_picture
from pipelines.inference.support_files import from_base64
from pipelines.inference.supports import SupportSet, load_support_set
from pipelines.labelling.decisions import Decision
from pipelines.labelling.images import list_images
from pipelines.labelling.manifest import claim
from pipelines.labelling.outputs import LABELS, write_outputs
from pipelines.labelling.run import check_bundle, describe_job
from pipelines.review.doubt import DoubtOrder, order_by_doubt, rows_at, sureness
from pipelines.review.job import ReviewedJob, open_job
from pipelines.review.redo import begin, resume
from pipelines.serving.requests import RefusedError
from pipelines.serving.spec import ServiceSpec

MAX_RUNNING = 2  # jobs at a time: they share the replicas
PAGE = 24  # labels a page
SIDE = 640  # pixels of a shown photo's longer side
SHOWN = {"job_id", "title", "classes", "photos", "images", "out", "origin", "command", "started"}
ORDERS = 4  # jobs whose order is kept


class Jobs:
    """The jobs of one service. `about` says of its bundle what a manifest needs."""

    def __init__(self, spec: ServiceSpec, about: dict[str, Any], handle: Any) -> None:
        self.spec, self.about, self.handle = spec, about, handle
        self.board = JobRecords(spec.workspace)
        self._orders: dict[tuple[str, int], DoubtOrder] = {}

    def start(self, asked: JobRequest) -> dict[str, Any]:
        """Claim the job's folder and set a task to work. The same request again is the same job.

        Raises `FssError` for bad wishes, `RefusedError` for places that are not allowed (403), and where enough jobs
        run (429).
        """
        images = list_images(self._allowed(asked.images), asked.limit)
        classes = [load_support_set(self.spec.model.supports_url, i) for i in asked.support_ids]
        if len({c.class_name for c in classes}) < len(classes):
            raise FssError("two support sets have the same class name", mend="name them differently")
        settings = asked.model_dump(include={"threshold", "overlaps", "prevalence"}, exclude_none=True)
        recipe = job_recipe(self.spec.recipe, self.spec.model.batch, settings)
        manifest = describe_job(recipe, self.about, images, classes, asked.limit)
        job_id = job_name(manifest)
        out = Store(self.board.out(job_id))
        self._room(job_id)
        claim(out, manifest)
        _keep_supports(out, classes)
        return self._begin(JobRecord(
            job_id=job_id, out=out.url, images=images.url, title=manifest.title, classes=manifest.classes,
            photos=len(images), limit=asked.limit, settings=settings, started=time.time(),
            command=label_command(out.url, images.url, recipe, workspace=self.spec.workspace, limit=asked.limit,
                                  bundle=self.spec.model.bundle_url)))

    def again(self, job_id: str, below: float | None) -> dict[str, Any]:
        """A job that labels the doubtful photos of another again, with its corrections as supports."""
        record, old = self.record(job_id), self.opened(job_id)
        old.need_all()
        self._same_bundle(old)
        bound = old.manifest.review_below if below is None else below
        told = f"{job_id} {bound} {[d.model_dump_json() for d in old.decided.values()]}"
        name = f"{job_id.rsplit('-', 1)[0]}-{hashlib.sha256(told.encode()).hexdigest()[:10]}"
        out = Store(self.board.out(name))
        self._room(name)
        if not out.exists("origin.json"):
            begin(old, out, bound)
        _, classes = resume(out, self.spec.model.supports_url)
        for one in classes:
            one.save(self.spec.model.supports_url)
        _keep_supports(out, classes)
        command = shlex.join(["fss", "review", "again", old.out.url, "--out", out.url, "--below", str(bound),
                              "--workspace", self.spec.workspace, "--bundle", self.spec.model.bundle_url])
        return self._begin(record.model_copy(update={"job_id": name, "out": out.url, "origin": job_id,
                                                     "started": time.time(), "command": command}))

    def go_on(self, job_id: str) -> dict[str, Any]:
        """Work on what is left."""
        record, job = self.record(job_id), self.opened(job_id)
        self._allowed(record.images)
        if len(job.chunks) < job.manifest.chunks:
            self._same_bundle(job)
        self._room(job_id)
        return self._begin(record)

    def stop(self, job_id: str) -> dict[str, Any]:
        """Ask the task to stop after the chunks in hand."""
        self.record(job_id)
        if self.board.progress(job_id).state == "running":
            self.board.ask_to_stop(job_id)
        return self.show(job_id)

    def _begin(self, record: JobRecord) -> dict[str, Any]:
        import ray

        if self.board.progress(record.job_id).state != "running":
            self.board.ask_to_stop(record.job_id, stop=False)
            self.board.add(record)
            before = self.board.progress(record.job_id)
            self.board.tell(record.job_id, Progress(state="running", done=before.done, failed=before.failed))
            recipe = job_recipe(self.spec.recipe, self.spec.model.batch, record.settings)
            task = ray.remote(num_cpus=0.1, max_retries=0)(run_job_task)
            task.remote(self.spec.workspace, record, recipe, self.spec.model.supports_url, self.handle)
        return self.show(record.job_id)

    def _same_bundle(self, job: ReviewedJob) -> None:
        check_bundle(job.manifest, self.about, mend="`fss serve --bundle` the job's bundle, or start a new job")

    def _room(self, job_id: str) -> None:
        running = [r.job_id for r in self.board.all() if self.board.progress(r.job_id).state == "running"]
        if job_id not in running and len(running) >= MAX_RUNNING:
            raise RefusedError(429, f"{len(running)} jobs run already", mend="wait, or stop one")

    def _allowed(self, url: str) -> str:
        try:
            return check_place(url, self.spec.roots)
        except PermissionError as error:
            allowed = ", ".join(self.spec.roots or ()) or "none is"
            raise RefusedError(403, f"this service may not read {url[:200]!r}",
                               mend=f"allowed with serve.roots: {allowed}") from error

    def record(self, job_id: str) -> JobRecord:
        """Raises `RefusedError` 404."""
        found = self.board.get(job_id)
        if found is None:
            raise RefusedError(404, f"there is no job {job_id[:80]!r}")
        return found

    def opened(self, job_id: str) -> ReviewedJob:
        """The job's folder. Raises `RefusedError` 403 if its photos are where this service may not read."""
        job = open_job(self.record(job_id).out)
        self._allowed(job.manifest.images_url)
        return job

    def list(self) -> dict[str, Any]:
        """All jobs, the newest first."""
        return {"jobs": [self._shown(r) for r in self.board.all()]}

    def show(self, job_id: str) -> dict[str, Any]:
        """One job and how far it is."""
        return self._shown(self.record(job_id))

    def _shown(self, record: JobRecord) -> dict[str, Any]:
        told = self.board.progress(record.job_id)
        left = (record.photos - told.done) / told.rate if told.rate and told.state == "running" else None
        return {**record.model_dump(include=SHOWN), "state": told.state,
                "done": told.done, "failed": told.failed, "rate": round(told.rate, 3),
                "left_s": left if left is None else round(left, 1), "error": told.error,
                "stopping": told.state == "running" and self.board.stopping(record.job_id)}

    def labels(self, job_id: str, page: int, *, undecided: bool) -> dict[str, Any]:
        """A page of labels, the most doubtful first."""
        job = self.opened(job_id)
        order, decided = self._order(job_id, job), job.decided
        names = job.manifest.classes
        places = [i for i in range(len(order)) if not undecided
                  or (int(order.image_ids[i]), names[int(order.classes[i])]) not in decided]
        rows = rows_at(job, order, places[page * PAGE:(page + 1) * PAGE])
        shown = []
        for row in rows:
            decision = decided.get((row["image_id"], row["class_name"]))
            mask = decision.mask if decision else None
            shown.append({
                "image_id": row["image_id"], "image": row["file_name"], "class_name": row["class_name"],
                "height": row["height"], "width": row["width"], "sure": round(sureness(row), 4),
                "calibrated": row.get("quality") is not None, "empty": not row["area"],
                "counts": mask["counts"] if mask else row["rle"], "decision": decision.decision if decision else ""})
        return {"labels": shown, "page": page, "pages": -(-len(places) // PAGE), "shown": len(places),
                "total": order.total, "decided": len(decided), "review_below": job.manifest.review_below}

    def _order(self, job_id: str, job: ReviewedJob) -> DoubtOrder:
        key = (job_id, len(job.chunks))
        if key not in self._orders:
            while len(self._orders) >= ORDERS:
                self._orders.pop(next(iter(self._orders)), None)
            self._orders[key] = order_by_doubt(job)
        return self._orders[key]

    def decide(self, job_id: str, given: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Keep decisions; a mask may be a PNG as base64."""
        job = self.opened(job_id)
        made = []
        for number, one in enumerate(given):
            where = f"decisions[{number}]"
            if isinstance(one.get("mask"), str):
                one = {**one, "mask": mask_from_picture(from_base64(one["mask"], where), where)}
            made.append(Decision.model_validate(one))
        job.decide(made)
        return {"decided": len(job.decided)}

    def photo(self, job_id: str, image_id: int) -> bytes:
        """A photo as a small JPEG, upright."""
        job = self.opened(job_id)
        picture = Image.fromarray(np.ascontiguousarray(job.pixels(job.rows_of(image_id)[0]["file_name"])))
        picture.thumbnail((SIDE, SIDE))
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=85)
        return file.getvalue()

    def outputs(self, job_id: str) -> str:
        """Write the outputs with the decisions in them. Returns the path or URL of labels.json."""
        job = self.opened(job_id)
        job.need_all()
        write_outputs(job.out, job.manifest)
        return job.out.path(LABELS)


def _keep_supports(out: Store, classes: Sequence[SupportSet]) -> None:
    """The job's support sets in its own folder, as `fss label --supports` reads them."""
    rows = []
    for one in classes:
        one.save(join(out.url, "supports"))
        rows.append({"class_name": one.class_name, "supports": [
            {"image": f"supports/{one.support_id}/{s.sha256}", **s.mark} for s in one.supports]})
    out.write_json(LABEL_SET, {"classes": rows})
