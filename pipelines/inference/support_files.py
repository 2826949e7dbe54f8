"""Reading support sets that people write: a JSON file next to photos, or a JSON request with photos in base64.

    {"class_name": "cat", "supports": [{"image": "cat.jpg", "mask": "cat.png"}, {"image": "b.jpg", "box": [..]}]}

In a file, `image` and a text `mask` are URLs or paths relative to the file; in a request they are base64 or data URLs.
The other marks are described in `marks`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Any

from fss_models.errors import FssError
from fss_models.marks import KINDS, Mark, check_keys, mask_from_picture
from pipelines.base.storage import Store
from pipelines.inference.supports import SupportSet, build_support_set

Fetch = Callable[[str, str], bytes]  # (text, where) -> bytes


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


def support_set_from_request(body: Any) -> SupportSet:
    """The support set in the body of `POST /v1/supports`. Raises `FssError` with one line for a mistake."""
    return read_supports(body, from_base64, "")


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
    return {"class_name": supports.class_name, "supports": rows}


def read_supports(content: Any, fetch: Fetch, where: str) -> SupportSet:
    """The support set that `content` describes. `fetch` reads its pictures. Raises `FssError` that names `where`."""
    prefix = f"{where}: " if where else ""
    check_keys(content, ("class_name", "supports"), where or "request")
    rows = content.get("supports")
    if not isinstance(rows, list):
        raise FssError("supports is not a list", where=where, hint='write "supports": [{"image": ..., "mask": ...}]')
    read = [_row(row, fetch, f"{prefix}supports[{i}]") for i, row in enumerate(rows)]
    return build_support_set(content.get("class_name"), read, where)


def _row(row: Any, fetch: Fetch, where: str) -> tuple[bytes, Mark]:
    check_keys(row, ("image", *KINDS, "labels"), where)
    mark = {k: v for k, v in row.items() if k != "image"}
    if not isinstance(row.get("image"), str) or not row["image"]:
        raise FssError("image is missing", where=where)
    if isinstance(mark.get("mask"), str):
        mark["mask"] = mask_from_picture(fetch(mark["mask"], f"{where}.mask"), f"{where}.mask")
    return fetch(row["image"], f"{where}.image"), mark
