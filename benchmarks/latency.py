"""A TCP proxy that delays: every request's answer begins `seconds` later than it would, as from a far data centre."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_CHUNK = 1 << 16


@contextmanager
def delayed(host: str, port: int, seconds: float) -> Iterator[int]:
    """The port of a proxy to (host, port) that lives as long as the block, in a thread of its own.

    Within a connection the first bytes that go back after bytes went out wait: once a request, however long its answer.
    """
    loop, ready = asyncio.new_event_loop(), threading.Event()
    found: list[asyncio.Server] = []

    def serve() -> None:
        asyncio.set_event_loop(loop)
        found.append(loop.run_until_complete(
            asyncio.start_server(lambda r, w: _connection(r, w, host, port, seconds), "127.0.0.1", 0)))
        ready.set()
        loop.run_forever()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    ready.wait()
    try:
        yield int(found[0].sockets[0].getsockname()[1])
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        found[0].close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


async def _connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int,
                      seconds: float) -> None:
    far_reader, far_writer = await asyncio.open_connection(host, port)
    asked = [False]  # whether the answer now coming has not begun yet

    async def there() -> None:
        while data := await reader.read(_CHUNK):
            asked[0] = True
            far_writer.write(data)
            await far_writer.drain()
        far_writer.close()

    async def back() -> None:
        while data := await far_reader.read(_CHUNK):
            if asked[0]:
                asked[0] = False
                await asyncio.sleep(seconds)
            writer.write(data)
            await writer.drain()
        writer.close()

    with suppress(ConnectionError, asyncio.CancelledError):
        await asyncio.gather(there(), back())
