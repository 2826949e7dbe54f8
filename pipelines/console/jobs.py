"""Starting, stopping and resuming jobs, and review of their labels. The calls block: the service uses threads."""

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
from fss_models.marks import mask_from_picture
from pipelines.base.storage import Store, join
from pipelines.base.webhook import read_secret
from pipelines.console.records import (
    LABEL_SET,
    JobRecord,
    JobRecords,
    JobRequest,
    Progress,
    check_place,
    check_receiver,
    job_name,
    job_recipe,
    label_command,
)
from pipelines.console.task import run_job_task
from pipelines.inference.support_files import from_base64
from pipelines.inference.supports import SupportSet, load_support_set, prompt_key
from pipelines.labelling.decisions import Decision, apply_decision
from pipelines.labelling.images import keep_unread, list_images
from pipelines.labelling.inputs import read_inputs
from pipelines.labelling.instance_decisions import numbered
from pipelines.labelling.manifest import claim_folder
from pipelines.labelling.outputs import LABELS, write_outputs
from pipelines.labelling.run import check_bundle, describe_job
from pipelines.review.doubt import DoubtOrder, order_by_doubt, rows_at, sureness
from pipelines.review.job import ReviewedJob, open_job
from pipelines.review.redo import begin_redo, resume_redo
from pipelines.serving.requests import RefusedError
from pipelines.serving.server import LOOPBACK
from pipelines.serving.spec import ServiceSpec

ASKED = {"threshold", "overlaps", "prevalence", "instances", "notify"}  # fields of a request that are job settings
MAX_RUNNING = 2  # jobs at a time; they share the replicas
PAGE = 24  # labels a page
SIDE = 640  # pixels of a shown photo's longer side
SHOWN = {"job_id", "title", "classes", "photos", "images", "out", "origin", "command", "started"}
ORDERS = 4  # jobs whose order by doubt is in memory


class Jobs:
    """The jobs of one service. `about` is the `about_bundle` of its bundle, `handle` that of its bulk deployment."""

    def __init__(self, spec: ServiceSpec, about: dict[str, Any], handle: Any) -> None:
        self.spec, self.about, self.handle = spec, about, handle
        self.records = JobRecords(spec.workspace)
        self._orders: dict[tuple[str, int], DoubtOrder] = {}

    def take(self, spec: ServiceSpec, about: dict[str, Any]) -> None:
        """Begin new jobs with another bundle, which `spec` and `about` describe."""
        self.spec, self.about = spec, about

    def start(self, request: JobRequest) -> dict[str, Any]:
        """Claim the job's folder and start a task that labels it. An equal request continues the same job.

        Raises `FssError` for a wrong request, `RefusedError` for photos that the service may not read (403) and while
        too many jobs run (429).
        """
        place = self._check_allowed(request.images)
        self._check_receiver(request.notify or "")
        if (kind := read_inputs(place).kind) != "folder":
            raise FssError(f"a {kind} of photos cannot be labelled from here", hint="use `fss label`, or give a folder")
        images = list_images(place, request.limit)
        classes = [load_support_set(self.spec.model.supports_url, i) for i in request.support_ids]
        if len({c.class_name for c in classes}) < len(classes):
            raise FssError("two support sets have the same class name", hint="give them different names")
        settings = request.model_dump(include=ASKED, exclude_none=True)
        recipe = job_recipe(self.spec.recipe, self.spec.model, settings)
        manifest = describe_job(recipe, self.about, images, classes, request.limit)
        job_id = job_name(manifest)
        out = Store(self.records.out(job_id))
        self._check_capacity(job_id)
        claim_folder(out, manifest)
        keep_unread(out, images)
        _save_supports(out, classes)
        return self._start_task(JobRecord(
            job_id=job_id, out=out.url, images=images.url, title=manifest.title, classes=manifest.classes,
            photos=len(images), limit=request.limit, settings=settings, started=time.time(),
            command=label_command(out.url, images.url, recipe, workspace=self.spec.workspace, limit=request.limit,
                                  bundle=self.spec.model.bundle_url)))

    def redo(self, job_id: str, below: float | None) -> dict[str, Any]:
        """Start a job that labels the doubtful labels of another again, with its corrections as supports."""
        record, old = self.record(job_id), self.open(job_id)
        old.check_complete()
        self._check_bundle(old)
        self._check_receiver(record.settings.get("notify", ""))
        bound = old.manifest.review_below if below is None else below
        content = f"{job_id} {bound} {[d.model_dump_json() for d in old.decisions.values()]}"
        name = f"{job_id.rsplit('-', 1)[0]}-{hashlib.sha256(content.encode()).hexdigest()[:10]}"
        out = Store(self.records.out(name))
        self._check_capacity(name)
        if not out.exists("origin.json"):
            begin_redo(old, out, bound)
        _, classes = resume_redo(out, self.spec.model.supports_url)
        for one in classes:
            one.save(self.spec.model.supports_url)
        _save_supports(out, classes)
        command = shlex.join(["fss", "review", "again", old.out.url, "--out", out.url, "--below", str(bound),
                              "--workspace", self.spec.workspace, "--bundle", self.spec.model.bundle_url])
        return self._start_task(record.model_copy(update={"job_id": name, "out": out.url, "origin": job_id,
                                                          "started": time.time(), "command": command}))

    def resume(self, job_id: str) -> dict[str, Any]:
        """Start a task that labels the remaining chunks."""
        record, job = self.record(job_id), self.open(job_id)
        self._check_allowed(record.images)
        self._check_receiver(record.settings.get("notify", ""))
        if len(job.chunks) < job.manifest.chunks:
            self._check_bundle(job)
        self._check_capacity(job_id)
        return self._start_task(record)

    def stop(self, job_id: str) -> dict[str, Any]:
        """Tell the task to stop after the chunks that are being labelled."""
        self.record(job_id)
        if self.records.progress(job_id).state == "running":
            self.records.set_stop(job_id, True)
        return self.show(job_id)

    def _start_task(self, record: JobRecord) -> dict[str, Any]:
        import ray

        if self.records.progress(record.job_id).state != "running":
            self.records.set_stop(record.job_id, False)
            self.records.add(record)
            before = self.records.progress(record.job_id)
            self.records.write_progress(record.job_id,
                                        Progress(state="running", done=before.done, failed=before.failed))
            recipe = job_recipe(self.spec.recipe, self.spec.model, record.settings)
            task = ray.remote(num_cpus=0.1, max_retries=0)(run_job_task)
            task.remote(self.spec.workspace, record, recipe, self.spec.model.supports_url, self.handle)
        return self.show(record.job_id)

    def _check_bundle(self, job: ReviewedJob) -> None:
        check_bundle(job.manifest, self.about, hint="start `fss serve` with the job's --bundle, or start a new job")
        for key, mine in self.spec.model.serve.computing().items():
            if mine != (theirs := getattr(job.manifest, key)):
                raise FssError(f"the labels were made with {key} {theirs!r}, not {mine!r}",
                               hint=f"start `fss serve` with --set serve.{key}={theirs}, or start a new job")

    def _check_capacity(self, job_id: str) -> None:
        running = [r.job_id for r in self.records.all() if self.records.progress(r.job_id).state == "running"]
        if job_id not in running and len(running) >= MAX_RUNNING:
            raise RefusedError(429, f"{len(running)} jobs are running already", hint="wait, or stop one of them")

    def _check_allowed(self, url: str) -> str:
        try:
            return check_place(url, self.spec.roots)
        except PermissionError as error:
            allowed = ", ".join(self.spec.roots or ()) or "no folder"
            raise RefusedError(403, f"this service may not read {url[:200]!r}",
                               hint=f"serve.roots allows {allowed}") from error

    def _check_receiver(self, url: str) -> None:
        """Raises `RefusedError` 403 for a URL that clients may not have called, `FssError` without a secret."""
        if not url:
            return
        config = self.spec.recipe.serve
        try:
            check_receiver(url, None if config.host in LOOPBACK and not config.notify_roots
                           else tuple(config.notify_roots))
        except PermissionError as error:
            raise RefusedError(403, "this service may not call the URL of notify",
                               hint="serve.notify_roots of the service allows URLs") from error
        read_secret()

    def record(self, job_id: str) -> JobRecord:
        """The record of a job. Raises `RefusedError` 404 for an unknown job."""
        found = self.records.get(job_id)
        if found is None:
            raise RefusedError(404, f"there is no job {job_id[:80]!r}")
        return found

    def open(self, job_id: str) -> ReviewedJob:
        """The job, opened for review. Raises `RefusedError` 403 if the service may not read its photos."""
        job = open_job(self.record(job_id).out)
        self._check_allowed(job.manifest.images_url)
        return job

    def list(self) -> dict[str, Any]:
        """All labelling jobs, the newest first."""
        return {"jobs": [self._shown(r) for r in self.records.all()]}

    def show(self, job_id: str) -> dict[str, Any]:
        """A job and its progress."""
        return self._shown(self.record(job_id))

    def _shown(self, record: JobRecord) -> dict[str, Any]:
        now = self.records.progress(record.job_id)
        left = (record.photos - now.done) / now.rate if now.rate and now.state == "running" else None
        return {**record.model_dump(include=SHOWN), "state": now.state,
                "done": now.done, "failed": now.failed, "rate": round(now.rate, 3),
                "left_s": left if left is None else round(left, 1), "error": now.error,
                "stopping": now.state == "running" and self.records.stop_requested(record.job_id)}

    def labels(self, job_id: str, page: int, *, undecided: bool) -> dict[str, Any]:
        """A page of labels, the most doubtful first."""
        job = self.open(job_id)
        order, decisions = self._order(job_id, job), job.decisions
        names = job.manifest.classes
        places = [i for i in range(len(order)) if not undecided
                  or (int(order.image_ids[i]), names[int(order.classes[i])]) not in decisions]
        rows = rows_at(job, order, places[page * PAGE:(page + 1) * PAGE])
        shown = [shown_label(row, decisions.get((row["image_id"], row["class_name"]))) for row in rows]
        return {"labels": shown, "page": page, "pages": -(-len(places) // PAGE), "shown": len(places),
                "total": order.total, "decided": len(decisions), "review_below": job.manifest.review_below}

    def _order(self, job_id: str, job: ReviewedJob) -> DoubtOrder:
        key = (job_id, len(job.chunks))
        if key not in self._orders:
            while len(self._orders) >= ORDERS:
                self._orders.pop(next(iter(self._orders)), None)
            self._orders[key] = order_by_doubt(job)
        return self._orders[key]

    def decide(self, job_id: str, decisions: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Save decisions, whose masks may be PNGs as base64. Returns how many labels have one now."""
        job = self.open(job_id)
        checked = []
        for number, one in enumerate(decisions):
            where = f"decisions[{number}]"
            if isinstance(one.get("mask"), str):
                one = {**one, "mask": mask_from_picture(from_base64(one["mask"], where), where)}
            checked.append(Decision.model_validate(one))
        job.decide(checked)
        return {"decided": len(job.decisions)}

    def photo(self, job_id: str, image_id: int) -> bytes:
        """A photo as a small JPEG, upright."""
        job = self.open(job_id)
        picture = Image.fromarray(np.ascontiguousarray(job.pixels(image_id, job.rows_of(image_id)[0]["file_name"])))
        picture.thumbnail((SIDE, SIDE))
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=85)
        return file.getvalue()

    def outputs(self, job_id: str) -> str:
        """Write the outputs with the decisions applied. Returns the path or URL of labels.json."""
        job = self.open(job_id)
        job.check_complete()
        write_outputs(job.out, job.manifest)
        return job.out.path(LABELS)


def shown_label(row: dict[str, Any], decision: Decision | None) -> dict[str, Any]:
    """A part's row and the decision about it, as the page shows them: with a correction its mask and instances."""
    mask = decision.mask if decision else None
    now = apply_decision(numbered(row), decision if mask else None).get("instances")
    return {"image_id": row["image_id"], "image": row["file_name"], "class_name": row["class_name"],
            "height": row["height"], "width": row["width"], "sure": round(sureness(row), 4),
            "calibrated": row.get("quality") is not None, "empty": not row["area"],
            "counts": mask["counts"] if mask else row["rle"],
            "instances": None if now is None else [
                {"number": one.get("number"), "counts": one["rle"], "score": one["score"]} for one in now],
            "decision": decision.decision if decision else ""}


def _save_supports(out: Store, classes: Sequence[SupportSet]) -> None:
    """Write the support sets into the job's folder in the form that `fss label --supports` reads."""
    rows = []
    for one in classes:
        one.save(join(out.url, "supports"))
        rows.append({"class_name": one.class_name, **prompt_key(one), "supports": [
            {"image": f"supports/{one.support_id}/{s.sha256}", **s.mark} for s in one.supports]})
    out.write_json(LABEL_SET, {"classes": rows})
