"""Load for an HTTP service from one process, light enough to share a machine with it.

A closed loop asks again as soon as it has its answer, so it shows what a service can do. An open loop sends by the
clock whatever comes back, as people do who know nothing of each other, so it shows what too much does.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass

import aiohttp

PATIENCE_S = 600.0


@dataclass(frozen=True, kw_only=True)
class RequestTiming:
    """Of one request: when it was due, how much later it was sent, and how long after it was due it was answered.

    status  0: no answer came
    line    the one line of a refusal, or what went wrong; empty where the answer is good or says nothing clear
    """

    due: float
    late: float
    seconds: float
    status: int
    line: str = ""


class Endpoint:
    """A path of a service that is asked the same again and again. As many connections at a time as requests."""

    def __init__(self, url: str, body: object) -> None:
        self._url, self._body = url, json.dumps(body).encode()
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0),
                                              timeout=aiohttp.ClientTimeout(total=PATIENCE_S),
                                              headers={"Content-Type": "application/json"})

    async def ask(self, due: float = 0.0) -> RequestTiming:
        """Send and wait. `due`: when it should have been sent, by default now. Without an answer the status is 0."""
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


async def closed_loop(address: Endpoint, clients: int, seconds: float) -> list[RequestTiming]:
    """`clients` that each ask again and again, until `seconds` are over."""
    answers: list[RequestTiming] = []
    end = time.monotonic() + seconds

    async def client() -> None:
        while time.monotonic() < end:
            answers.append(await address.ask())

    await asyncio.gather(*(client() for _ in range(clients)))
    return answers


async def open_loop(address: Endpoint, rate: float, seconds: float, seed: int) -> list[RequestTiming]:
    """Requests at random times, `rate` a second in the mean. Returns when all are answered."""
    rng, due = random.Random(seed), time.monotonic()
    end = due + seconds
    asked: list[asyncio.Task[RequestTiming]] = []
    while (due := due + rng.expovariate(rate)) < end:
        if (wait := due - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        asked.append(asyncio.create_task(address.ask(due)))
    return await asyncio.gather(*asked)


def _line(body: bytes) -> str:
    """The text of `{"error": "one line"}`, or of a body that is one line itself; empty for anything else."""
    try:
        found = json.loads(body)
        text = found["error"] if isinstance(found, dict) and found.keys() == {"error"} else ""
    except ValueError:
        text = body.decode(errors="replace").strip()
    return text if isinstance(text, str) and len(text.splitlines()) == 1 else ""
