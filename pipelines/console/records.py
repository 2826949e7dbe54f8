"""What is known of the jobs that were started in the console, in files below the workspace: nothing is in memory alone.

    jobs/ID.json           what was asked; the job itself is a folder as `fss label` makes it, labels/ID
    jobs/ID.progress.json  how far it is, written every few seconds by the task that works on it
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import time
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fss_models.errors import FssError
from pipelines.base.storage import Store, join
from pipelines.config.label import LabelConfig
from pipelines.config.mask_request import MAX_CLASSES
from pipelines.config.recipe import Recipe
from pipelines.labelling.manifest import JobManifest

FOLDER, LABELS = "jobs", "labels"
LABEL_SET = "label_set.json"  # the job's support sets, as `fss label --supports` reads them
STALE_S = 30  # a task that has said nothing for so long is gone
SETTINGS = ("chunk", "batch", "pairs", "prevalence", "empty_below", "review_below")
State = Literal["running", "done", "stopped", "failed", "interrupted"]


class JobRequest(BaseModel):
    """The content of `POST /v1/jobs`: label the photos below `images` with these support sets, one a class."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    images: str = Field(min_length=1, max_length=1000, description="folder or s3://bucket/prefix of the service's")
    support_ids: list[str] = Field(min_length=1, max_length=MAX_CLASSES)
    threshold: float | None = Field(None, gt=0, lt=1, description="probability above which a pixel is the object")
    overlaps: Literal["keep", "resolve"] | None = None
    prevalence: float | None = Field(None, gt=0, lt=1, description="share of the photos that show a class")
    limit: int = Field(0, ge=0, le=2**31, description="only the first photos; 0: all")


class JobRecord(BaseModel):
    """jobs/ID.json."""

    job_id: str
    out: str
    images: str
    title: str
    classes: list[str]
    photos: int
    limit: int = 0
    settings: dict[str, Any]  # of the recipe's label section
    started: float
    origin: str = ""  # the job whose doubtful labels it makes again
    command: str  # the same job from the command line


class Progress(BaseModel):
    """jobs/ID.progress.json."""

    state: State
    done: int = 0  # photos
    failed: int = 0
    rate: float = 0.0  # photos a second
    error: str = ""
    at: float = 0.0


@dataclass(frozen=True)
class JobRecords:
    """The records of a workspace."""

    workspace: str

    @property
    def store(self) -> Store:
        """The workspace."""
        return Store(self.workspace)

    def out(self, job_id: str) -> str:
        """Where a job's labels are."""
        return join(self.workspace, LABELS, job_id)

    def add(self, record: JobRecord) -> None:
        """Write what was asked."""
        self.store.write_json(f"{FOLDER}/{record.job_id}.json", record.model_dump())

    def get(self, job_id: str) -> JobRecord | None:
        """None if there is no such job."""
        name = f"{FOLDER}/{job_id}.json"
        if not re.fullmatch(r"[a-z0-9-]{1,80}", job_id) or not self.store.exists(name):
            return None
        return JobRecord.model_validate(self.store.read_json(name))

    def all(self) -> list[JobRecord]:
        """The newest first."""
        names = [n for n in self.store.list(FOLDER, suffix=".json") if n.count(".") == 1]
        found = [JobRecord.model_validate(self.store.read_json(n)) for n in names]
        return sorted(found, key=lambda r: -r.started)

    def progress(self, job_id: str) -> Progress:
        """How far it is. A task that says nothing any more was interrupted."""
        name = self._progress(job_id)
        if not self.store.exists(name):
            return Progress(state="interrupted")
        found = Progress.model_validate(self.store.read_json(name))
        gone = found.state == "running" and time.time() - found.at > STALE_S
        return found.model_copy(update={"state": "interrupted", "rate": 0.0}) if gone else found

    def tell(self, job_id: str, progress: Progress) -> None:
        """Write how far it is."""
        self.store.write_json(self._progress(job_id), {**progress.model_dump(), "at": time.time()})

    def ask_to_stop(self, job_id: str, stop: bool = True) -> None:
        """What the task looks for."""
        if stop:
            self.store.write_bytes(f"{FOLDER}/{job_id}.stop", b"")
        else:
            self.store.delete(f"{FOLDER}/{job_id}.stop")

    def stopping(self, job_id: str) -> bool:
        """Whether somebody asked."""
        return self.store.exists(f"{FOLDER}/{job_id}.stop")

    def _progress(self, job_id: str) -> str:
        return f"{FOLDER}/{job_id}.progress.json"


def job_name(manifest: JobManifest) -> str:
    """The same job has the same name: class and hash of what decides its parts."""
    words = re.sub(r"[^a-z0-9]+", "-", manifest.classes[0].lower()).strip("-")[:24] or "job"
    content = {k: v for k, v in manifest.content().items() if k != "images_url"}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]
    return f"{words}-{digest}"


def job_recipe(recipe: Recipe, batch: int, settings: dict[str, Any]) -> Recipe:
    """The service's recipe with a job's settings."""
    label = LabelConfig.model_validate({**recipe.label.model_dump(), **settings, "batch": batch})
    return recipe.model_copy(update={"label": label})


def label_command(record_out: str, images: str, recipe: Recipe, *, workspace: str, bundle: str, limit: int) -> str:
    """`fss label` for the same job."""
    label, plain = recipe.label, LabelConfig()
    words = ["fss", "label", "--images", images, "--supports", join(record_out, LABEL_SET), "--out", record_out,
             "--workspace", workspace, "--bundle", bundle]
    words += [f"--{k}={getattr(label, k)}" for k in ("threshold", "overlaps") if getattr(label, k) != getattr(plain, k)]
    words += [f"--limit={limit}"] if limit else []
    for key in SETTINGS:
        if getattr(label, key) != getattr(plain, key):
            words += ["--set", f"label.{key}={getattr(label, key)}"]
    for key in ("max_pixels", "max_bytes"):
        if getattr(recipe.data, key) != getattr(Recipe().data, key):
            words += ["--set", f"data.{key}={getattr(recipe.data, key)}"]
    return shlex.join(words)


def check_place(url: str, roots: tuple[str, ...] | None) -> str:
    """The place as the service calls it. Raises `FssError` if it is none, `PermissionError` if it is not allowed."""
    if any(ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) < 0xE000 for c in url):
        raise FssError("images has control characters")
    place = _real(url)
    if roots is None or any(place == root or place.startswith(f"{root}/") for root in map(_real, roots)):
        return place
    raise PermissionError(url)


def _real(url: str) -> str:
    """Without links and dots, so that a prefix means what it says."""
    from pathlib import Path

    place = Store(url).url
    if not place.startswith("s3://"):
        return str(Path(place).resolve())
    if any(part in ("", ".", "..") for part in place.removeprefix("s3://").split("/")):
        raise FssError("images is no plain s3://bucket/prefix")
    return place
