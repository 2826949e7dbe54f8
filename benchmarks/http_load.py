"""Load for an HTTP service, from one process that is light enough to run on the service's machine.

A closed loop sends the next request when it has the answer to the last one, so it measures the service's capacity. An
open loop sends requests at times that do not depend on the answers, as independent users do, so it measures how the
service behaves under overload.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass

import aiohttp

TIMEOUT_S = 600.0


@dataclass(frozen=True, kw_only=True)
class RequestTiming:
    """The timing and the outcome of one request; times are in seconds.

    due      when the request was to be sent, by `time.monotonic`
    late     how long after `due` it was sent
    seconds  how long after `due` it was answered
    status   the HTTP status, 0 if no answer came
    line     the line of a refusal or of a network error; empty if the answer is good or has no such line
    """

    due: float
    late: float
    seconds: float
    status: int
    line: str = ""


class Endpoint:
    """A URL to which the same request is sent many times, with a connection for each request in flight."""

    def __init__(self, url: str, body: object) -> None:
        self._url, self._body = url, json.dumps(body).encode()
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0),
                                              timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
                                              headers={"Content-Type": "application/json"})

    async def send(self, due: float = 0.0) -> RequestTiming:
        """Send the request and wait for its answer. `due`: when it was to be sent, by default now."""
        due, late = (due, time.monotonic() - due) if due else (time.monotonic(), 0.0)
        try:
            async with self._session.post(self._url, data=self._body) as answer:
                status, body = answer.status, await answer.read()
            line = "" if status == 200 else _line(body)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            status, line = 0, f"{type(error).__name__}: {error}"
        return RequestTiming(due=due, late=late, seconds=time.monotonic() - due, status=status, line=line)

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()


async def run_closed_loop(endpoint: Endpoint, clients: int, seconds: float) -> list[RequestTiming]:
    """Run `clients` clients for `seconds`; each sends its next request as soon as it has an answer."""
    answers: list[RequestTiming] = []
    end = time.monotonic() + seconds

    async def client() -> None:
        while time.monotonic() < end:
            answers.append(await endpoint.send())

    await asyncio.gather(*(client() for _ in range(clients)))
    return answers


async def run_open_loop(endpoint: Endpoint, rate: float, seconds: float, seed: int) -> list[RequestTiming]:
    """Send requests at random times for `seconds`, on average `rate` a second. Returns when all are answered."""
    rng, due = random.Random(seed), time.monotonic()
    end = due + seconds
    tasks: list[asyncio.Task[RequestTiming]] = []
    while (due := due + rng.expovariate(rate)) < end:
        if (wait := due - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(endpoint.send(due)))
    return await asyncio.gather(*tasks)


def _line(body: bytes) -> str:
    """The error's text of a body `{"error": "one line"}`, or a body that is one line; "" for any other body."""
    try:
        found = json.loads(body)
        text = found["error"] if isinstance(found, dict) and found.keys() == {"error"} else ""
    except ValueError:
        text = body.decode(errors="replace").strip()
    return text if isinstance(text, str) and len(text.splitlines()) == 1 else ""
