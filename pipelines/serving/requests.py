"""Reading requests: limits on their size and form, and one clear line for every mistake."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import ConfigDict, Field, model_validator
from starlette.requests import Request
from starlette.responses import Response

from fss_models.errors import FssError
from fss_models.forms import Form
from pipelines.config.mask_request import MAX_CLASSES, MaskRequest, check_overlaps
from pipelines.config.wanted import Wanted
from pipelines.inference.support_files import from_base64
from pipelines.serving.server import LOOPBACK

Handler = Callable[[Request], Awaitable[Response]]
MAX_IMAGES = 256  # photos in one request


class RefusedError(FssError):
    """A request that the service refuses: `status` is the HTTP status (4xx or 5xx)."""

    def __init__(self, status: int, what: str, *, hint: str = "") -> None:
        super().__init__(what, hint=hint)
        self.status = status


class SegmentRequest(Wanted, Form):
    """The body of `POST /v1/segment`: photos, and the masks to compute for each."""

    model_config = ConfigDict(json_schema_extra={
        "oneOf": [{"required": ["support_id"]}, {"required": ["support_ids"]}]})
    support_id: str | None = Field(None, min_length=1)
    support_ids: list[str] | None = Field(None, min_length=1, max_length=MAX_CLASSES, description=(
        "several classes, each once; each photo's result is then a list of labels"))
    images: list[str] = Field(min_length=1, max_length=MAX_IMAGES, description=(
        "photos (JPEG, PNG, WebP, BMP, TIFF) as base64 or data URLs"))
    bulk: bool = Field(False, description="use the replicas for jobs")

    @model_validator(mode="after")
    def _classes(self) -> SegmentRequest:
        if self.support_id is not None and self.support_ids is not None:
            raise ValueError("the request has both support_id and support_ids (give one of them)")
        if self.support_id is None and self.support_ids is None:
            raise ValueError("support_id is missing (POST /v1/supports gives one)")
        if len(set(self.ids)) < len(self.ids) or not all(self.ids):
            raise ValueError(f"support_ids has empty or repeated ids (at most {MAX_CLASSES}, each once)")
        check_overlaps(self.overlaps, len(self.ids))
        return self

    @property
    def ids(self) -> tuple[str, ...]:
        """The support set of each class."""
        return tuple(self.support_ids or [self.support_id or ""])

    @property
    def masks(self) -> MaskRequest:
        """What the model is asked for."""
        return MaskRequest(support_ids=self.ids, **self.wanted())

    def photos(self) -> list[bytes]:
        """The photos' bytes. Raises `FssError` that names the first text that is not base64."""
        return [from_base64(text, f"images[{i}]") for i, text in enumerate(self.images)]


class ReadRequest(Request):
    """A request whose JSON has been read: FastAPI takes the content. The bytes are no longer kept beside it."""

    def __init__(self, request: Request, content: Any) -> None:
        super().__init__(request.scope, request.receive)
        self._content = content

    async def body(self) -> bytes:
        """FastAPI asks only whether there are any bytes."""
        return b"{}"

    async def json(self) -> Any:
        """The content of the body."""
        return self._content


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
