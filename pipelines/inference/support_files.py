"""Reading support sets that people write: a JSON file next to photos, or a JSON request with photos in base64.

    {"class_name": "cat", "supports": [{"image": "cat.jpg", "mask": "cat.png"}, {"image": "b.jpg", "box": [..]}]}

A row with "negative": true shows what the class is not: what it marks, or all of the photo if it marks nothing.
In a file, `image` and a text `mask` are URLs or paths relative to the file; in a request they are base64 or data URLs.
The other marks are described in `marks`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from fss_models.errors import FssError
from fss_models.forms import Form, read_form
from fss_models.marks import (
    WHOLE,
    BoxMark,
    Mark,
    MaskMark,
    NegativePhoto,
    PointsMark,
    ScribbleMark,
    kind_tag,
    mask_from_picture,
    one_kind,
)
from pipelines.base.storage import Store
from pipelines.inference.supports import SupportSet, build_support_set, prompt_key

Fetch = Callable[[str, str], bytes]  # (text, where) -> bytes
Photo = Annotated[str, Field(min_length=1, description=(
    "a photo (JPEG, PNG, WebP, BMP, TIFF): base64 or data URL in a request, a path in a file"))]


class MaskSupport(MaskMark):
    """A photo and the object's pixels in it."""

    image: Photo


class BoxSupport(BoxMark):
    """A photo and a box around the object."""

    image: Photo


class PointsSupport(PointsMark):
    """A photo and points on the object and off it."""

    image: Photo


class ScribbleSupport(ScribbleMark):
    """A photo and a line drawn on the object."""

    image: Photo


class NegativeSupport(NegativePhoto):
    """A photo in which nothing is of the class."""

    image: Photo


SupportForm = Annotated[
    Annotated[MaskSupport, Tag("mask mark")] | Annotated[BoxSupport, Tag("box mark")]
    | Annotated[PointsSupport, Tag("points mark")] | Annotated[ScribbleSupport, Tag("scribble mark")]
    | Annotated[NegativeSupport, Tag(WHOLE)], Discriminator(kind_tag), one_kind("image")]


class SupportRequest(Form):
    """A class and the photos that show it: the body of `POST /v1/supports`, and the content of a supports file."""

    class_name: str = Field(description="only the first 200 characters are used")
    prompt: str = Field("", description="what to look for, in words, for methods that read class names; the class name "
                        "is used where it is empty; other methods refuse it")
    supports: list[SupportForm] = Field(json_schema_extra={"minItems": 1})  # `build_support_set` says it in words


def read_support_file(url: str) -> SupportSet:
    """The support set of a supports file, local or s3://. Raises `FssError` with one line for a mistake."""
    file = Store(url)
    return read_supports(file.read_json(), fetcher(file.parent), file.name)


def fetcher(store: Store) -> Fetch:
    """A function that reads files by a path relative to `store`, an absolute path or a URL."""

    def fetch(path: str, where: str) -> bytes:
        absolute = "://" in path or path.startswith("/")
        file = Store(path if absolute else store.path(path))
        if not file.exists():
            raise FssError(f"{path!r} does not exist", where=where, hint="paths are relative to the supports file")
        return file.read_bytes()

    return fetch


def support_set_from_request(body: SupportRequest) -> SupportSet:
    """The support set in the body of `POST /v1/supports`. Raises `FssError` with one line for a mistake."""
    return _support_set(body, from_base64, "")


def from_base64(text: str, where: str) -> bytes:
    """The bytes of base64 text or of a data URL. Raises `FssError` for anything else."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise FssError("the text is neither base64 nor a data URL", where=where) from error


def support_request(supports: SupportSet) -> dict[str, Any]:
    """The body of `POST /v1/supports` for a support set."""
    rows = [{"image": base64.b64encode(s.image).decode(), **s.mark} for s in supports.supports]
    return {"class_name": supports.class_name, "supports": rows, **prompt_key(supports)}


def read_supports(content: Any, fetch: Fetch, where: str) -> SupportSet:
    """The support set that `content` describes. `fetch` reads its pictures. Raises `FssError` that names `where`."""
    return _support_set(read_form(SupportRequest, content, where), fetch, where)


def _support_set(form: SupportRequest, fetch: Fetch, where: str) -> SupportSet:
    prefix = f"{where}: " if where else ""
    read = [_row(row, fetch, f"{prefix}supports[{i}]") for i, row in enumerate(form.supports)]
    return build_support_set(form.class_name, read, where, form.prompt)


def _row(row: MaskSupport | BoxSupport | PointsSupport | ScribbleSupport | NegativeSupport, fetch: Fetch,
         where: str) -> tuple[bytes, Mark]:
    mark = row.model_dump(exclude={"image"}, exclude_none=True, exclude_defaults=True)
    if isinstance(row, MaskSupport) and isinstance(row.mask, str):
        mark["mask"] = mask_from_picture(fetch(row.mask, f"{where}.mask"), f"{where}.mask")
    return fetch(row.image, f"{where}.image"), mark
