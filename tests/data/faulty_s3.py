"""A proxy in front of a real S3 server that fails every nth request, always the same ones in the order of arrival."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count

KINDS = ("503 slow down", "503 unavailable", "504 after a second", "dropped", "cut short")
_NOT_PASSED_ON = {"expect", "connection", "keep-alive", "transfer-encoding"}
_ERROR = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{}</Code><Message>of the test</Message></Error>'


class FaultyProxy(ThreadingHTTPServer):
    """Every `every`th request fails, in one of `kinds` after the other, and the next `due` ones; `failed` counts them.

    `hang_s` > 0 makes the 15th request hang that long, past any client's patience. While `read_only` is set, all
    writes are refused; while `away` is set everything is, every second request by a connection that ends.
    `conditions`: "" the server's own, "refused" or "ignored" as servers do that have no conditional writes.
    """

    daemon_threads = True

    def __init__(self, upstream: str, hang_s: float, kinds: Sequence[str], every: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.kinds, self.every, self.due = kinds, every, 0
        self.read_only = self.away = False
        self.conditions = ""
        self.upstream, self.hang_s = upstream.removeprefix("http://"), hang_s
        self.failed: Counter[str] = Counter()
        self.requests = 0
        self._numbers, self._lock = count(), threading.Lock()

    @property
    def endpoint(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_port}"

    def fault(self, command: str) -> str:
        """What happens to the next request; empty: it is passed on."""
        with self._lock:
            if self.away or (self.read_only and command in ("PUT", "POST", "DELETE")):
                self.failed["refused"] += 1
                return "dropped" if self.away and self.failed["refused"] % 2 else "503 unavailable"
            number = next(self._numbers)
            self.requests += 1
            if self.hang_s and number == 15:
                kind = "hung"
            elif self.due or number % self.every == 3:
                self.due = max(0, self.due - 1)
                kind = self.kinds[number // self.every % len(self.kinds)]
            else:
                return ""
            self.failed[kind] += 1
            return kind


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyProxy

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.server.fault(self.command)
        if fault in ("dropped", "hung"):
            time.sleep(self.server.hang_s if fault == "hung" else 0)
            self.close_connection = True
            return
        if fault.startswith("50"):
            time.sleep(1.0 if "after" in fault else 0.0)
            code = {"503 slow down": "SlowDown", "503 unavailable": "ServiceUnavailable"}.get(fault, "GatewayTimeout")
            self._answer(int(fault[:3]), {"Content-Type": "application/xml"}, _ERROR.format(code).encode(), len)
            return
        if self.server.conditions == "refused" and {"if-match", "if-none-match"} & {k.lower() for k in self.headers}:
            self._answer(501, {"Content-Type": "application/xml"}, _ERROR.format("NotImplemented").encode(), len)
            return
        status, headers, data = self._upstream(body)
        if self.server.conditions == "ignored" and status == 412:
            status, headers, data = 200, {"ETag": '"of a later version"'}, b""
        self._answer(status, headers, data, (lambda d: len(d) // 2) if fault == "cut short" else len)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass  # noqa: N815 - the names that http.server wants

    def _upstream(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """The server's answer to the same request, its signed Host header included."""
        link = http.client.HTTPConnection(self.server.upstream, timeout=60)
        link.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in _NOT_PASSED_ON:
                link.putheader(name, value)
        link.endheaders(body)
        answer = link.getresponse()
        data = answer.read()
        headers = {k: v for k, v in answer.getheaders() if k.lower() not in _NOT_PASSED_ON}
        link.close()
        return answer.status, headers, data

    def _answer(self, status: int, headers: dict[str, str], data: bytes, sent: object) -> None:
        """Send an answer; of `data` only the first `sent(data)` bytes, after which the connection ends."""
        length = sent(data) if callable(sent) else len(data)
        with suppress(BrokenPipeError, ConnectionResetError):
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() != "content-length":
                    self.send_header(name, value)
            known = headers.get("Content-Length") if self.command == "HEAD" else None
            if status not in (204, 304):
                self.send_header("Content-Length", known or str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data[:length])
            self.close_connection = self.close_connection or length < len(data)

    def log_message(self, *_: object) -> None:
        """Silent."""


@contextmanager
def faulty_proxy(
    upstream: str, *, hang_s: float = 0.0, kinds: Sequence[str] = KINDS, every: int = 10
) -> Iterator[FaultyProxy]:
    """A running proxy."""
    proxy = FaultyProxy(upstream, hang_s, kinds, every)
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
