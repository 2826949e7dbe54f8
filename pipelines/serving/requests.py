"""Reading what clients send: limits on size and form, and one clear line for every mistake."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from fss_models.errors import FssError
from pipelines.serving.marks import check_keys
from pipelines.serving.support_files import from_base64

MAX_IMAGES = 256  # of one request


class RefusedError(FssError):
    """A request that is answered with a 4xx or 5xx status and one line."""

    def __init__(self, status: int, what: str, *, mend: str = "") -> None:
        super().__init__(what, mend=mend)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class SegmentRequest:
    """The content of `POST /v1/segment`. `bulk` sends it to the replicas that serve jobs."""

    support_id: str
    images: list[bytes]
    threshold: float
    bulk: bool


async def read_json(request: Request, max_bytes: int) -> Any:
    """The JSON body. Raises `RefusedError` 413 above `max_bytes`, 415 for another type, 400 for broken JSON."""
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        # Other types need no permission of the browser: any web page could post them to a service on this machine.
        raise RefusedError(415, "the request is not application/json", mend="set the Content-Type header")
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > max_bytes:
        raise _too_large(max_bytes)
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
    try:
        return await asyncio.to_thread(json.loads, bytes(body))
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, f"the request is not valid JSON: {str(error)[:120]}") from error


def _too_large(max_bytes: int) -> RefusedError:
    return RefusedError(413, f"the request is larger than {max_bytes} bytes", mend="send fewer photos at a time")


def parse_segment(body: Any) -> SegmentRequest:
    """Check `{"support_id", "images": [base64], "threshold"?, "bulk"?}`. Raises `FssError`."""
    check_keys(body, ("support_id", "images", "threshold", "bulk"), "request")
    support_id, images = body.get("support_id"), body.get("images")
    if not isinstance(support_id, str) or not support_id:
        raise FssError("support_id is missing", mend="POST /v1/supports gives one")
    if not isinstance(images, list) or not images or not all(isinstance(i, str) for i in images):
        raise FssError("images is not a list of base64 texts")
    if len(images) > MAX_IMAGES:
        raise FssError(f"{len(images)} images in one request are too many", mend=f"at most {MAX_IMAGES}")
    threshold, bulk = body.get("threshold", 0.5), body.get("bulk", False)
    if not isinstance(threshold, int | float) or isinstance(threshold, bool) or not 0 < threshold < 1:
        raise FssError(f"threshold is {str(threshold)[:40]!r}, not a number between 0 and 1")
    if not isinstance(bulk, bool):
        raise FssError("bulk is neither true nor false")
    photos = [from_base64(text, f"images[{i}]") for i, text in enumerate(images)]
    return SegmentRequest(support_id=support_id, images=photos, threshold=float(threshold), bulk=bulk)


def token_hash(token: str) -> str:
    """What a replica keeps of the token; empty if there is none."""
    return hashlib.sha256(token.encode()).hexdigest() if token else ""


def check_token(request: Request, wanted: str) -> None:
    """Raises `RefusedError` 401 if a token is wanted and another, or none, is given."""
    if not wanted:
        return
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not hmac.compare_digest(token_hash(given.strip()), wanted):
        raise RefusedError(401, "the token is missing or wrong", mend="send Authorization: Bearer TOKEN")
