"""Load for an HTTP service from one process, light enough to share a machine with it: raw requests, kept connections.

A closed loop asks again as soon as it has its answer, so it shows what a service can do. An open loop sends by the
clock whatever comes back, as people do who know nothing of each other, so it shows what too much does.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
PATIENCE_S = 600.0


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Of one request: when it was due, how much later it was sent, and how long after it was due it was answered.

    status  0: no answer came
    line    the one line of a refusal, or what went wrong; empty where the answer is good or says nothing clear
    """

    due: float
    late: float
    seconds: float
    status: int
    line: str = ""


class Address:
    """A service. Every request has a connection to itself; those that are free again are kept."""

    def __init__(self, url: str) -> None:
        self.host, self.port = str(urlsplit(url).hostname), int(urlsplit(url).port or 80)
        self._free: list[Connection] = []

    def post(self, path: str, body: object) -> bytes:
        """A request, as it is sent."""
        data = json.dumps(body).encode()
        head = (f"POST {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(data)}\r\n\r\n")
        return head.encode() + data

    async def ask(self, request: bytes, due: float = 0.0) -> Answer:
        """Send and wait. `due`: when it should have been sent, by default now. Without an answer the status is 0."""
        due, late = (due, time.monotonic() - due) if due else (time.monotonic(), 0.0)
        try:
            status, body = await asyncio.wait_for(self._ask(request), PATIENCE_S)
            line = "" if status == 200 else _line(body)
        except (OSError, EOFError, ValueError, TimeoutError) as error:
            status, line = 0, f"{type(error).__name__}: {error}"
        return Answer(due=due, late=late, seconds=time.monotonic() - due, status=status, line=line)

    async def _ask(self, request: bytes) -> tuple[int, bytes]:
        reader, writer = await self._connect()
        try:
            writer.write(request)
            await writer.drain()
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            status, fields = int(head.split(" ", 2)[1]), _fields(head)
            body = await _body(reader, fields)
        except BaseException:
            writer.close()
            raise
        if fields.get("connection") == "close":
            writer.close()
        else:
            self._free.append((reader, writer))
        return status, body

    async def _connect(self) -> Connection:
        while self._free:
            reader, writer = self._free.pop()
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer
            writer.close()
        return await asyncio.open_connection(self.host, self.port)

    def close(self) -> None:
        """Close the free connections."""
        for _, writer in self._free:
            writer.close()
        self._free.clear()


async def closed_loop(address: Address, request: bytes, clients: int, seconds: float) -> list[Answer]:
    """`clients` that each ask again and again, until `seconds` are over."""
    answers: list[Answer] = []
    end = time.monotonic() + seconds

    async def client() -> None:
        while time.monotonic() < end:
            answers.append(await address.ask(request))

    await asyncio.gather(*(client() for _ in range(clients)))
    return answers


async def open_loop(address: Address, request: bytes, rate: float, seconds: float, seed: int) -> list[Answer]:
    """Requests at random times, `rate` a second in the mean. Returns when all are answered."""
    rng, due = random.Random(seed), time.monotonic()
    end = due + seconds
    asked: list[asyncio.Task[Answer]] = []
    while (due := due + rng.expovariate(rate)) < end:
        if (wait := due - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        asked.append(asyncio.create_task(address.ask(request, due)))
    return await asyncio.gather(*asked)


def _fields(head: str) -> dict[str, str]:
    lines = (line.partition(":") for line in head.split("\r\n")[1:] if line)
    return {name.strip(): value.strip() for name, _, value in lines}


async def _body(reader: asyncio.StreamReader, fields: dict[str, str]) -> bytes:
    if fields.get("transfer-encoding") != "chunked":
        return await reader.readexactly(int(fields["content-length"]))
    body = b""
    while size := int(await reader.readline(), 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readline()
    return body


def _line(body: bytes) -> str:
    """The text of `{"error": "one line"}`, or of a body that is one line itself; empty for anything else."""
    try:
        found = json.loads(body)
        text = found["error"] if isinstance(found, dict) and found.keys() == {"error"} else ""
    except ValueError:
        text = body.decode(errors="replace").strip()
    return text if isinstance(text, str) and len(text.splitlines()) == 1 else ""
