"""A server that answers S3's ListObjectsV2 for a bucket of any number of objects, which exist nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, urlsplit

from tests.web import Quiet, serving

PAGE = 1000


class ObjectLists:
    """`count` objects photos/0000000.jpg, ...; `asked`: pages that were sent; after `dies` pages it answers 403."""

    def __init__(self, count: int, endpoint: str = "") -> None:
        self.count, self.endpoint, self.asked, self.dies = count, endpoint, 0, 10**9

    def page(self, query: dict[str, list[str]]) -> str:
        """The answer to one request."""
        first = 0
        if "continuation-token" in query:
            first = int(query["continuation-token"][0])
        elif "start-after" in query:
            first = int(query["start-after"][0][-11:-4]) + 1
        last = min(first + min(PAGE, int(query.get("max-keys", ["1000"])[0])), self.count)
        keys = "".join(f"<Contents><Key>photos/{n:07d}.jpg</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                       f"<Size>{1000 + n % 7}</Size></Contents>" for n in range(first, last))
        more = (f"<IsTruncated>true</IsTruncated><NextContinuationToken>{last}</NextContinuationToken>"
                if last < self.count else "<IsTruncated>false</IsTruncated>")
        return f'<?xml version="1.0"?><ListBucketResult><Name>many</Name>{more}{keys}</ListBucketResult>'


@contextmanager
def object_lists(count: int) -> Iterator[ObjectLists]:
    """The server, as long as the block runs."""
    lists = ObjectLists(count)

    class Handler(Quiet, BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._send(404, b"")

        def do_GET(self) -> None:
            lists.asked += 1
            dead = lists.asked > lists.dies
            self._send(403 if dead else 200, b"" if dead else lists.page(parse_qs(urlsplit(self.path).query)).encode())

        def _send(self, status: int, data: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Content-Type", "application/xml")
            self.end_headers()
            self.wfile.write(data)

    with serving(Handler) as lists.endpoint:
        yield lists
