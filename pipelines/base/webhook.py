"""Tells a URL what has happened: signed JSON, sent at least once, in the form of the Standard Webhooks specification.

    POST URL
    webhook-id: 5f0c...              the same each time that an event is sent, so that a receiver can drop repeats
    webhook-timestamp: 1767225600    seconds since 1970, of this attempt
    webhook-signature: v1,BASE64     HMAC-SHA256 of "ID.TIMESTAMP.BODY" under FSS_WEBHOOK_SECRET

    {"id": "5f0c...", "type": "label.done", "timestamp": "2026-05-04T10:20:30+00:00", "data": {...}}

An event is recorded in a folder before it is sent, and removed when its receiver has answered with 2xx: a process that
is killed in between leaves it to the next one. Source: https://www.standardwebhooks.com.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import httpx
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from fss_models.errors import FssError
from pipelines.base.outcome import error_line
from pipelines.base.progress import say
from pipelines.base.storage import Store

SECRET = "FSS_WEBHOOK_SECRET"
PREFIX = "whsec_"  # of a secret that is base64
EVENTS = "events.json"
ATTEMPTS = 6  # half a minute of pauses; an event that older ones wait before is tried once
TIMEOUT_S = 10.0  # of one attempt
MOST_WAITING = 100  # events that wait for a receiver; the oldest are dropped
LATER = (408, 425, 429)  # besides 5xx: answers after which it is tried again


class _NotDeliveredError(Exception):
    """The receiver did not answer with 2xx. `retryable`: it may do so later."""

    def __init__(self, reason: str, *, retryable: bool) -> None:
        super().__init__(reason)
        self.retryable = retryable


def read_secret() -> bytes:
    """The key that events are signed with: FSS_WEBHOOK_SECRET as text, or as base64 behind `whsec_`.

    Raises `FssError` without one.
    """
    text = os.environ.get(SECRET, "")
    if not text:
        raise FssError(f"there is no {SECRET} to sign events with",
                       hint="set it to a long secret that the receiver knows, or leave --notify out")
    if not text.startswith(PREFIX):
        return text.encode()
    try:
        return base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except binascii.Error as error:
        raise FssError(f"{SECRET} begins with {PREFIX}, but base64 does not follow",
                       hint="use another secret, or one without this prefix") from error


def signature(secret: bytes, event_id: str, timestamp: int, body: bytes) -> str:
    """The value of the header webhook-signature. `timestamp`: seconds since 1970."""
    signed = f"{event_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()


class Outbox:
    """The events of one folder on their way to the receiver `url`, in order."""

    def __init__(self, folder: Store, url: str) -> None:
        self._folder, self._url = folder, url

    def tell(self, kind: str, data: dict[str, Any], *, key: str = "", attempts: int = ATTEMPTS) -> None:
        """Record an event of the type `kind`, then send all that wait. One that is not delivered is a line, no error.

        An event with the `key` of the last one was recorded before; empty: it is always a new one. Raises `FssError` if
        the folder cannot be written.
        """
        record = self._read()
        older = bool(record["waiting"])
        if not key or key != record["last"]:
            event = {"id": uuid.uuid4().hex, "type": kind, "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
                     "data": data}
            record = {"last": key, "waiting": [*record["waiting"], event][-MOST_WAITING:]}
            self._folder.write_json(EVENTS, record)
        self._send(record, 1 if older else attempts)

    def _read(self) -> dict[str, Any]:
        found: dict[str, Any] = self._folder.read_json(EVENTS) if self._folder.exists(EVENTS) else {}
        return {"last": "", "waiting": [], **found}

    def _send(self, record: dict[str, Any], attempts: int) -> None:
        waiting = list(record["waiting"])
        again = Retrying(stop=stop_after_attempt(attempts), wait=wait_exponential_jitter(initial=1, max=30),
                         retry=retry_if_exception(lambda e: isinstance(e, _NotDeliveredError) and e.retryable),
                         reraise=True)
        with httpx.Client(timeout=TIMEOUT_S) as client:
            while waiting:
                try:
                    again(_post, client, self._url, waiting[0])
                except _NotDeliveredError as error:
                    say(f"warning: {_server(self._url)} was not told: {error}; events that wait in {EVENTS}: "
                        f"{len(waiting)}")
                    return
                del waiting[0]
                self._folder.write_json(EVENTS, {**record, "waiting": waiting})


@contextmanager
def told_if_it_fails(tell: Callable[[str, str], None]) -> Iterator[None]:
    """Calls `tell` with the state, failed or stopped, and the error's line if the block ends with an exception."""
    try:
        yield
    except BaseException as error:
        failed = isinstance(error, Exception)
        with suppress(FssError):  # the first error is the one to show
            tell("failed" if failed else "stopped", error_line(error) if failed else "")
        raise


def _post(client: httpx.Client, url: str, event: dict[str, Any]) -> None:
    """Send an event once; redirects are not followed, and the answer's body is not read."""
    body, now = json.dumps(event, sort_keys=True).encode(), int(time.time())
    try:
        signed = signature(read_secret(), event["id"], now, body)
    except FssError as error:
        raise _NotDeliveredError(error.what, retryable=False) from error
    headers = {"content-type": "application/json", "webhook-id": event["id"], "webhook-timestamp": str(now),
               "webhook-signature": signed}
    try:
        with client.stream("POST", url, content=body, headers=headers) as answer:
            status = answer.status_code
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, UnicodeError) as error:
        raise _NotDeliveredError("the URL cannot be used", retryable=False) from error
    except httpx.HTTPError as error:
        raise _NotDeliveredError(type(error).__name__, retryable=True) from error
    if not 200 <= status < 300:
        raise _NotDeliveredError(f"HTTP {status}", retryable=status >= 500 or status in LATER)


def _server(url: str) -> str:
    """The part of a URL that is no secret."""
    try:
        return httpx.URL(url).host or "the receiver"
    except (httpx.InvalidURL, UnicodeError):
        return "the receiver"
