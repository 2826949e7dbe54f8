"""Reading requests: limits on their size and form, and one clear line for every mistake."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from fss_models.errors import FssError
from fss_models.marks import check_keys
from pipelines.config.mask_request import MAX_CLASSES, MaskRequest, check_overlaps
from pipelines.inference.support_files import from_base64
from pipelines.serving.server import LOOPBACK

Handler = Callable[[Request], Awaitable[Response]]
Route = tuple[str, str, Handler]  # verb, path, handler
MAX_IMAGES = 256  # photos in one request
TRUST = ("prevalence", "empty_below", "review_below")
MAX_PAIRS = 4096  # (class, photo) pairs in one call of the model


class RefusedError(FssError):
    """A request that the service refuses: `status` is the HTTP status (4xx or 5xx)."""

    def __init__(self, status: int, what: str, *, hint: str = "") -> None:
        super().__init__(what, hint=hint)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class SegmentRequest:
    """The body of `POST /v1/segment`: photos, and the masks to compute for each.

    With `bulk` the replicas for jobs compute them. `many`: the body had `support_ids`, so that each photo's result is
    a list of labels.
    """

    images: list[bytes]
    masks: MaskRequest
    bulk: bool
    many: bool


async def read_json(request: Request, max_bytes: int) -> Any:
    """The JSON body of a request.

    Raises `RefusedError`: 413 above `max_bytes`, 415 for another content type, 400 for invalid JSON.
    """
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        # Browsers let any web page post other types without asking, also to a service on this machine.
        raise RefusedError(415, "the request is not application/json", hint="set the Content-Type header")
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
    return RefusedError(413, f"the request is larger than {max_bytes} bytes", hint="send fewer photos at a time")


def parse_segment(body: Any) -> SegmentRequest:
    """The checked body of `POST /v1/segment`, whose fields `openapi` describes. Raises `FssError` for a mistake."""
    known = ("support_id", "support_ids", "images", "threshold", "overlaps", "pairs", *TRUST, "bulk")
    check_keys(body, known, "request")
    ids, images = _support_ids(body), body.get("images")
    if not isinstance(images, list) or not images or not all(isinstance(i, str) for i in images):
        raise FssError("images is not a list of base64 texts")
    if len(images) > MAX_IMAGES:
        raise FssError(f"{len(images)} images in one request are too many", hint=f"send at most {MAX_IMAGES}")
    threshold, bulk, pairs = body.get("threshold", 0.5), body.get("bulk", False), body.get("pairs", 0)
    if not isinstance(threshold, int | float) or isinstance(threshold, bool) or not 0 < threshold < 1:
        raise FssError(f"threshold is {str(threshold)[:40]!r}, not a number between 0 and 1")
    if not isinstance(bulk, bool):
        raise FssError("bulk is neither true nor false")
    if not isinstance(pairs, int) or isinstance(pairs, bool) or not 0 <= pairs <= MAX_PAIRS:
        raise FssError(f"pairs is {str(pairs)[:40]!r}, not a whole number from 0 to {MAX_PAIRS}")
    trust = {k: _chance(body, k) for k in TRUST}
    overlaps = body.get("overlaps", "keep")
    check_overlaps(overlaps, len(ids))
    masks = MaskRequest(support_ids=ids, threshold=float(threshold), overlaps=overlaps, pairs=pairs, **trust)
    photos = [from_base64(text, f"images[{i}]") for i, text in enumerate(images)]
    return SegmentRequest(images=photos, masks=masks, bulk=bulk, many="support_ids" in body)


def _chance(body: dict[str, Any], key: str) -> float:
    value = body.get(key, getattr(MaskRequest, key))
    odd = not isinstance(value, int | float) or isinstance(value, bool)
    if odd or not 0 <= value <= 1 or (key == "prevalence" and value in (0, 1)):
        raise FssError(f"{key} is {str(value)[:40]!r}, not a number between 0 and 1")
    return float(value)


def _support_ids(body: dict[str, Any]) -> tuple[str, ...]:
    if "support_ids" in body:
        ids = body["support_ids"]
        if "support_id" in body:
            raise FssError("the request has both support_id and support_ids", hint="give one of them")
        if not isinstance(ids, list) or not ids or not all(isinstance(i, str) and i for i in ids):
            raise FssError("support_ids is not a list of ids")
        if len(ids) > MAX_CLASSES or len(set(ids)) < len(ids):
            raise FssError(f"{len(ids)} support_ids are too many or repeated", hint=f"at most {MAX_CLASSES}, each once")
        return tuple(ids)
    support_id = body.get("support_id")
    if not isinstance(support_id, str) or not support_id:
        raise FssError("support_id is missing", hint="POST /v1/supports gives one")
    return (support_id,)


def token_hash(token: str) -> str:
    """SHA-256 of the token in hex digits, all that a replica knows of it; "" for no token."""
    return hashlib.sha256(token.encode()).hexdigest() if token else ""


def check_token(request: Request, expected_hash: str) -> None:
    """Raises `RefusedError` 401 unless the request has the token with this hash; "" accepts every request."""
    if not expected_hash:
        return
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not hmac.compare_digest(token_hash(token.strip()), expected_hash):
        raise RefusedError(401, "the token is missing or wrong", hint="send Authorization: Bearer TOKEN")


def check_host_header(request: Request) -> None:
    """Raises `RefusedError` 403 unless the Host header names this machine: any site's name may resolve to it."""
    host = request.headers.get("host", "").lower()
    name = host.partition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    if name not in LOOPBACK:
        raise RefusedError(403, f"the service answers only on this machine, not as {name[:80]!r}",
                           hint="open it as http://127.0.0.1:PORT")
