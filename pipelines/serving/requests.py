"""Reading what clients send: limits on size and form, and one clear line for every mistake."""

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
from pipelines.config.mask_request import MAX_CLASSES, MaskRequest, check_overlaps
from pipelines.inference.marks import check_keys
from pipelines.inference.support_files import from_base64
from pipelines.serving.server import LOOPBACK

Handler = Callable[[Request], Awaitable[Response]]
Route = tuple[str, str, Handler]  # verb, path, handler
MAX_IMAGES = 256  # of one request
TRUST = ("prevalence", "empty_below", "review_below")
MAX_PAIRS = 4096  # of one call of the model


class RefusedError(FssError):
    """A request that is answered with a 4xx or 5xx status and one line."""

    def __init__(self, status: int, what: str, *, mend: str = "") -> None:
        super().__init__(what, mend=mend)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class SegmentRequest:
    """The content of `POST /v1/segment`. `bulk` sends it to the replicas that serve jobs."""

    images: list[bytes]
    wanted: MaskRequest
    bulk: bool
    many: bool  # `support_ids` was given: every photo has a list of labels


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
    """Check `{"support_id" or "support_ids", "images": [base64], "threshold"?, "overlaps"?, "pairs"?, "bulk"?}`.

    Raises `FssError`.
    """
    known = ("support_id", "support_ids", "images", "threshold", "overlaps", "pairs", *TRUST, "bulk")
    check_keys(body, known, "request")
    ids, images = _support_ids(body), body.get("images")
    if not isinstance(images, list) or not images or not all(isinstance(i, str) for i in images):
        raise FssError("images is not a list of base64 texts")
    if len(images) > MAX_IMAGES:
        raise FssError(f"{len(images)} images in one request are too many", mend=f"at most {MAX_IMAGES}")
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
    wanted = MaskRequest(support_ids=ids, threshold=float(threshold), overlaps=overlaps, pairs=pairs, **trust)
    photos = [from_base64(text, f"images[{i}]") for i, text in enumerate(images)]
    return SegmentRequest(images=photos, wanted=wanted, bulk=bulk, many="support_ids" in body)


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
            raise FssError("has support_id and support_ids", mend="give one of them")
        if not isinstance(ids, list) or not ids or not all(isinstance(i, str) and i for i in ids):
            raise FssError("support_ids is not a list of ids")
        if len(ids) > MAX_CLASSES or len(set(ids)) < len(ids):
            raise FssError(f"{len(ids)} support_ids", mend=f"at most {MAX_CLASSES}, each once")
        return tuple(ids)
    support_id = body.get("support_id")
    if not isinstance(support_id, str) or not support_id:
        raise FssError("support_id is missing", mend="POST /v1/supports gives one")
    return (support_id,)


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


def check_host_header(request: Request) -> None:
    """Raises `RefusedError` 403 unless the request names this machine: another site's name may be made to lead here."""
    host = request.headers.get("host", "").lower()
    name = host.partition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    if name not in LOOPBACK:
        raise RefusedError(403, f"the service is for this machine, not for {name[:80]!r}",
                           mend="open it as http://127.0.0.1:PORT")
