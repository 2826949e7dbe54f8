"""The manifest of a labelling job, written before its first part, so that a folder never mixes two jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from fss_models.errors import FssError
from fss_models.limits import PhotoLimits
from pipelines.base.storage import Store
from pipelines.config.computing import Computing
from pipelines.config.mask_request import MaskRequest
from pipelines.config.wanted import Wanted
from pipelines.inference.supports import SupportSet
from pipelines.labelling.listing import ImageList

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1
PLAIN = ("folder", "glob")  # inputs whose photos are files below images_url
TITLE = 5  # largest number of class names in a title


class JobManifest(Wanted, Computing, PhotoLimits):
    """The content of manifest.json: everything that determines the bytes of the parts."""

    version: int = MANIFEST_VERSION
    images_url: str
    images_count: int
    images_hash: str  # hash of names and sizes; of a watched job a random name
    class_name: str = ""  # in a job with one class
    support_id: str = ""
    class_names: list[str] = Field([])  # in a job with several classes
    support_ids: list[str] = Field([])
    calibrator: str = ""  # sha256 of the bundle's calibrator, empty without one
    bundle_id: str
    method: str
    preset: str
    chunk: int
    batch: int
    features: str = "off"  # keep: rounded to half precision, and stored
    limit: int
    code_version: str
    agreement: float | None = None  # mean IoU of masks with `fast` and `published` preprocessing, where it was measured
    inputs: str = "folder"  # what --images was: folder, glob, list or tar (`labelling.inputs`)
    source_ids: bool = False  # photos have ids of the person's own list
    existing: str = ""  # URL of annotations that were there already
    existing_mode: Literal["", "keep", "fill", "compare"] = ""
    existing_hash: str = ""  # of what they say, and of the names that their classes got
    watched: bool = False  # `fss label --watch`: photos are added
    before: int = 0  # in a watched job: the photos that are all labelled; the others are the last batch
    redoes: str = ""  # in a job that labels doubtful labels of another job again: the hash of its origin.json

    @property
    def classes(self) -> list[str]:
        """The names of the classes."""
        return self.class_names or [self.class_name]

    @property
    def in_order(self) -> bool:
        """Whether the photos are in the order of their names."""
        return self.inputs in PLAIN and not self.watched

    @property
    def title(self) -> str:
        """The names of the classes in one line; of many classes the first ones."""
        names = self.classes
        return ", ".join(names[:TITLE]) + (f" and {len(names) - TITLE} more" if len(names) > TITLE else "")

    @property
    def supports(self) -> dict[str, Any]:
        """The ids of the support sets, as the outputs contain them."""
        return {"support_ids": self.support_ids} if self.support_ids else {"support_id": self.support_id}

    @property
    def mask_request(self) -> MaskRequest:
        """The request that every photo of the job is labelled with."""
        return MaskRequest(support_ids=tuple(self.support_ids or [self.support_id]), **self.wanted())

    def content(self) -> dict[str, Any]:
        """Serialised form; unset optional fields are omitted."""
        return {k: v for k, v in self.model_dump().items() if k not in LATER or v != LATER[k]}

    @property
    def chunks(self) -> int:
        """The number of chunks, which is the number of parts."""
        return -(-self.images_count // self.chunk)

    def rows(self, chunk: int) -> range:
        """The photos of a chunk, counted from 0."""
        return range(chunk * self.chunk, min((chunk + 1) * self.chunk, self.images_count))


LATER = {name: JobManifest.model_fields[name].default for name in (
    "class_name", "support_id", "class_names", "support_ids", "calibrator", "redoes", "agreement", "features",
    "inputs", "source_ids", "existing", "existing_mode", "existing_hash", "watched", "before",
    *Computing.model_fields,
    *(Wanted.model_fields.keys() - {"threshold"}))}


def describe_images(images: ImageList) -> dict[str, Any]:
    """The manifest's fields about the photos."""
    return {"images_url": images.url, "images_count": len(images), "images_hash": images.hash,
            "inputs": images.totals.inputs, "source_ids": images.totals.source_ids}


def describe_classes(classes: Sequence[SupportSet]) -> dict[str, Any]:
    """The manifest's fields about one class or several."""
    if len(classes) == 1:
        return {"class_name": classes[0].class_name, "support_id": classes[0].support_id}
    return {"class_names": [s.class_name for s in classes], "support_ids": [s.support_id for s in classes]}


def claim_folder(out: Store, manifest: JobManifest) -> bool:
    """Write the manifest. Returns whether it was there already. Raises `FssError` if the folder has another job."""
    if not out.exists(MANIFEST):
        if out.list("parts"):
            raise FssError("has parts but no manifest.json", where=out.url, hint="choose another --out")
        out.write_json(MANIFEST, manifest.content())
        return False
    mine, theirs = manifest.content(), out.read_json(MANIFEST)
    free = {"images_url", "existing", "agreement"}  # files may be mounted elsewhere; what was measured is no setting
    if manifest.watched:
        free |= {"images_count", "images_hash", "before"}
    differs = sorted(k for k in mine.keys() | theirs.keys() if mine.get(k) != theirs.get(k) and k not in free)
    if differs:
        key = differs[0]
        raise FssError(f"holds another job: its {key} is {theirs.get(key)!r}, but this job's is {mine.get(key)!r}",
                       where=out.url, hint="choose another --out, or use the same arguments as before")
    return True
