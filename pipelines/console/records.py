"""Records of the jobs that were started in the console: files below the workspace, nothing is in memory alone.

    jobs/ID.json           the job's settings; its labels are in labels/ID, a folder like those of `fss label`
    jobs/ID.progress.json  its progress, written every few seconds by the task that works on it
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import time
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import unquote

from pydantic import BaseModel, Field

from fss_models.errors import FssError
from fss_models.forms import Form
from fss_models.settings import InstanceSource
from pipelines.base.storage import Store, join
from pipelines.config.computing import Computing
from pipelines.config.label import LabelConfig
from pipelines.config.mask_request import MAX_CLASSES
from pipelines.config.recipe import Recipe
from pipelines.config.section import Notify
from pipelines.config.wanted import Overlaps, Prevalence, Threshold
from pipelines.labelling.manifest import JobManifest
from pipelines.serving.spec import ModelSpec

FOLDER, LABELS = "jobs", "labels"
LABEL_SET = "label_set.json"  # the job's support sets, as `fss label --supports` reads them
STALE_S = 30  # seconds without progress after which a task counts as interrupted
SETTINGS = ("chunk", "batch", *Computing.model_fields, "pairs", "prevalence", "empty_below", "review_below")
State = Literal["running", "done", "stopped", "failed", "interrupted"]


class JobRequest(Form):
    """The body of `POST /v1/jobs`: label the photos below `images` with these support sets, one for each class."""

    images: str = Field(min_length=1, max_length=1000,
                        description="a folder of the service's machine, or s3://bucket/prefix")
    support_ids: list[str] = Field(min_length=1, max_length=MAX_CLASSES)
    threshold: Threshold | None = None
    overlaps: Overlaps | None = None
    prevalence: Prevalence | None = None
    instances: InstanceSource | None = None
    limit: int = Field(0, ge=0, le=2**31, description="label only the first photos; 0: all")
    notify: Notify | None = Field(None, description="http(s) URL that is told when the job is done, stopped or failed")


class JobRecord(BaseModel):
    """The content of jobs/ID.json."""

    job_id: str
    out: str
    images: str
    title: str
    classes: list[str]
    photos: int
    limit: int = 0
    settings: dict[str, Any]  # keys of the recipe's label section
    started: float
    origin: str = ""  # the job whose doubtful labels this one redoes
    command: str  # the same job from the command line


class Progress(BaseModel):
    """The content of jobs/ID.progress.json."""

    state: State
    done: int = 0  # photos
    failed: int = 0  # photos that could not be read
    rate: float = 0.0  # photos per second
    error: str = ""
    at: float = 0.0  # time of writing, in seconds since 1970


@dataclass(frozen=True)
class JobRecords:
    """The records of the jobs in a workspace."""

    workspace: str

    @property
    def store(self) -> Store:
        """The store of the workspace."""
        return Store(self.workspace)

    def out(self, job_id: str) -> str:
        """The path or URL of a job's labels."""
        return join(self.workspace, LABELS, job_id)

    def add(self, record: JobRecord) -> None:
        """Write the record of a job."""
        self.store.write_json(f"{FOLDER}/{record.job_id}.json", record.model_dump())

    def get(self, job_id: str) -> JobRecord | None:
        """The record of a job; None if there is no such job."""
        name = f"{FOLDER}/{job_id}.json"
        if not re.fullmatch(r"[a-z0-9-]{1,80}", job_id) or not self.store.exists(name):
            return None
        return JobRecord.model_validate(self.store.read_json(name))

    def all(self) -> list[JobRecord]:
        """The records of all jobs, the newest first."""
        names = [n for n in self.store.list(FOLDER, suffix=".json") if n.count(".") == 1]
        found = [JobRecord.model_validate(self.store.read_json(n)) for n in names]
        return sorted(found, key=lambda r: -r.started)

    def progress(self, job_id: str) -> Progress:
        """The progress of a job. It is `interrupted` if its task has written none for `STALE_S` seconds."""
        name = self._progress(job_id)
        if not self.store.exists(name):
            return Progress(state="interrupted")
        found = Progress.model_validate(self.store.read_json(name))
        gone = found.state == "running" and time.time() - found.at > STALE_S
        return found.model_copy(update={"state": "interrupted", "rate": 0.0}) if gone else found

    def write_progress(self, job_id: str, progress: Progress) -> None:
        """Write the progress of a job, with the time."""
        self.store.write_json(self._progress(job_id), {**progress.model_dump(), "at": time.time()})

    def set_stop(self, job_id: str, stop: bool) -> None:
        """Write or remove the file that tells the job's task to stop."""
        if stop:
            self.store.write_bytes(f"{FOLDER}/{job_id}.stop", b"")
        else:
            self.store.delete(f"{FOLDER}/{job_id}.stop")

    def stop_requested(self, job_id: str) -> bool:
        """Whether the job's task has been told to stop."""
        return self.store.exists(f"{FOLDER}/{job_id}.stop")

    def _progress(self, job_id: str) -> str:
        return f"{FOLDER}/{job_id}.progress.json"


def job_name(manifest: JobManifest) -> str:
    """The name of a job: its first class and a hash of its manifest without `images_url`, equal for equal jobs."""
    words = re.sub(r"[^a-z0-9]+", "-", manifest.classes[0].lower()).strip("-")[:24] or "job"
    content = {k: v for k, v in manifest.content().items() if k != "images_url"}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]
    return f"{words}-{digest}"


def job_recipe(recipe: Recipe, model: ModelSpec, settings: dict[str, Any]) -> Recipe:
    """The service's recipe with the settings of a job, and of the service's model, in its label section.

    Raises `FssError` for a recipe with annotations, which jobs of a service do not keep.
    """
    if recipe.label.existing:
        raise FssError("label.existing is for `fss label`", hint="serve a recipe without it")
    own = {"batch": model.batch, "features": "off", **model.serve.computing()}
    label = LabelConfig.model_validate({**recipe.label.model_dump(), **settings, **own})
    return recipe.model_copy(update={"label": label})


def label_command(record_out: str, images: str, recipe: Recipe, *, workspace: str, bundle: str, limit: int) -> str:
    """The `fss label` command line of the same job."""
    label, plain = recipe.label, LabelConfig()
    words = ["fss", "label", "--images", images, "--supports", join(record_out, LABEL_SET), "--out", record_out,
             "--workspace", workspace, "--bundle", bundle]
    words += [f"--{k}={getattr(label, k)}" for k in ("threshold", "overlaps", "instances")
              if getattr(label, k) != getattr(plain, k)]
    words += [f"--limit={limit}"] if limit else []
    for key in SETTINGS:
        if getattr(label, key) != getattr(plain, key):
            words += ["--set", f"label.{key}={getattr(label, key)}"]
    for key in ("max_pixels", "max_bytes"):
        if getattr(recipe.data, key) != getattr(Recipe().data, key):
            words += ["--set", f"data.{key}={getattr(recipe.data, key)}"]
    return shlex.join(words)


def check_place(url: str, roots: tuple[str, ...] | None) -> str:
    """The resolved path or URL, if it is below one of `roots` (None: any).

    Raises `FssError` for an invalid path or URL, `PermissionError` for one that is not allowed.
    """
    if any(ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) < 0xE000 for c in url):
        raise FssError("images has control characters")
    place = _real(url)
    if roots is None or any(place == root or place.startswith(f"{root}/") for root in map(_real, roots)):
        return place
    raise PermissionError(url)


def check_receiver(url: str, roots: tuple[str, ...] | None) -> None:
    """Raises `PermissionError` for a URL that is not below one of `roots` (None: any).

    Scheme, server and port have to be equal, and the path has to begin with all parts of the root's.
    """
    import httpx

    def parts(text: str) -> tuple[str, str, int | None, list[str]]:
        one = httpx.URL(text)
        path = unquote(one.path)
        if one.userinfo or "\\" in path or not {".", ".."}.isdisjoint(path.split("/")):
            raise PermissionError(url)
        return one.scheme, one.host, one.port, path.rstrip("/").split("/")

    if roots is None:
        return
    try:
        mine = parts(url)
        allowed = any(mine[:3] == root[:3] and mine[3][:len(root[3])] == root[3] for root in map(parts, roots))
    except (httpx.InvalidURL, UnicodeError):
        allowed = False
    if not allowed:
        raise PermissionError(url)


def _real(url: str) -> str:
    """The path or URL without links and dots, so that prefixes can be compared. Raises `FssError`."""
    from pathlib import Path

    place = Store(url).url
    scheme, _, path = place.partition("://")
    if not path:
        return str(Path(place).resolve())
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise FssError(f"images is not of the form {scheme}://bucket/prefix")
    return place
