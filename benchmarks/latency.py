"""A TCP proxy that adds latency: every answer starts some seconds later, as if the server were far away."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_CHUNK = 1 << 16


@contextmanager
def run_delay_proxy(host: str, port: int, seconds: float) -> Iterator[int]:
    """Run a proxy to (host, port) in a thread for the block, and yield its port on 127.0.0.1.

    In each connection the first bytes of an answer are delayed by `seconds`: once a request, whatever the answer's
    length.
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
    waiting = [False]  # whether a request was sent whose answer has not started

    async def there() -> None:
        while data := await reader.read(_CHUNK):
            waiting[0] = True
            far_writer.write(data)
            await far_writer.drain()
        far_writer.close()

    async def back() -> None:
        while data := await far_reader.read(_CHUNK):
            if waiting[0]:
                waiting[0] = False
                await asyncio.sleep(seconds)
            writer.write(data)
            await writer.drain()
        writer.close()

    with suppress(ConnectionError, asyncio.CancelledError):
        await asyncio.gather(there(), back())
