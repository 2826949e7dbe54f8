"""What a labelling job is: written before its first part, so that a folder never mixes two jobs."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from pydantic import BaseModel, ConfigDict

from fss_models.errors import FssError
from pipelines.labelling.images import ImageList
from pipelines.storage import Store

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1


class JobManifest(BaseModel):
    """The content of manifest.json: all that decides the bytes of the parts."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    version: int = MANIFEST_VERSION
    images_url: str
    images_count: int
    images_hash: str  # of names and sizes
    class_name: str
    support_id: str
    bundle_id: str
    method: str
    preset: str
    chunk: int
    batch: int
    threshold: float
    limit: int
    max_pixels: int
    max_bytes: int
    code_version: str

    @property
    def chunks(self) -> int:
        """How many parts the job has."""
        return -(-self.images_count // self.chunk)

    def rows(self, chunk: int) -> range:
        """The photos (counted from 0) of a chunk."""
        return range(chunk * self.chunk, min((chunk + 1) * self.chunk, self.images_count))


def code_version() -> str:
    """The version of the installed package."""
    return version("fss")


def describe_images(images: ImageList) -> dict[str, Any]:
    """The manifest's fields about the photos."""
    return {"images_url": images.url, "images_count": len(images), "images_hash": images.hash}


def claim(out: Store, manifest: JobManifest) -> bool:
    """Write the manifest, or find the same one there (True). Raises `FssError` if the folder is another job's."""
    if not out.exists(MANIFEST):
        if out.list("parts"):
            raise FssError("has parts but no manifest.json", where=out.url, mend="choose another --out")
        out.write_json(MANIFEST, manifest.model_dump())
        return False
    mine, theirs = manifest.model_dump(), out.read_json(MANIFEST)
    moved = {"images_url"}  # the same photos may have been mounted elsewhere
    differs = sorted(k for k in mine.keys() | theirs.keys() if mine.get(k) != theirs.get(k) and k not in moved)
    if differs:
        key = differs[0]
        raise FssError(f"holds another job: its {key} is {theirs.get(key)!r}, this one's {mine.get(key)!r}",
                       where=out.url, mend="choose another --out, or give the same arguments again")
    return True
