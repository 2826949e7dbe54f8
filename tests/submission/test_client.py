"""The client of a cluster: addresses, tokens and secrets, with an HTTP server that answers like Ray's dashboard."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from fss_models.errors import FssError
from pipelines.base.cluster import PRIVATE_TOKEN
from pipelines.submission.client import Submissions, exit_code, read_token, resolve_address
from pipelines.submission.request import parse_variables
from pipelines.submission.secrets import refuse_secrets


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def serve(status: int, body: Any) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

        def log_message(self, *_: object) -> None:
            """Print no log."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("status", "body", "token", "line"), [
    (401, b"Unauthorized", "", "requires a token"),
    (403, b"Forbidden", "wrong", "refuses the token"),
    (200, b"<html>", "", "no Ray dashboard answers at this address"),
    (200, {"version": 1}, "", "no Ray dashboard answers at this address"),
    (404, b"", "", r"no Ray dashboard answers at this address \(HTTP 404\)"),
])
def test_answers_of_other_servers(status: int, body: Any, token: str, line: str,
                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    for url in serve(status, body):
        with pytest.raises(FssError, match=line) as caught:
            Submissions(url)
        assert "wrong" not in str(caught.value)


def test_an_unreachable_cluster() -> None:
    with pytest.raises(FssError, match=r"http://127\.0\.0\.1:9: cannot be reached"):
        Submissions("127.0.0.1:9")


@pytest.mark.parametrize("address", ["ray://head:10001", "ftp://head", "http://", "http://[::1"])
def test_bad_addresses(address: str) -> None:
    with pytest.raises(FssError, match="is not the address of a Ray dashboard"):
        resolve_address(address)


def test_where_the_address_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_address() == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # the address of another protocol
    assert resolve_address() == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://head:8265/")
    assert resolve_address() == "http://head:8265"
    assert resolve_address("https://other") == "https://other"
    with pytest.raises(FssError, match="contains a password"):
        resolve_address("http://me:hidden@head:8265")


def test_where_the_token_comes_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert read_token() == ""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("third\n")
    assert read_token() == "third"
    (tmp_path / "token").write_text("second\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert read_token() == "second"
    monkeypatch.setenv("RAY_AUTH_TOKEN", PRIVATE_TOKEN + "0" * 64)  # of a private cluster: not the person's
    assert read_token() == "second"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "first")
    assert read_token() == "first"
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "nowhere"))
    with pytest.raises(FssError, match="cannot read the token"):
        read_token()


@pytest.mark.parametrize(("arguments", "variables", "line"), [
    ((), {"AWS_SECRET_ACCESS_KEY": "x"}, "AWS_SECRET_ACCESS_KEY looks like a secret"),
    ((), {"FSS_TOKEN": "x"}, "FSS_TOKEN looks like a secret"),
    (("--set", "tracking=http://me:hidden@mlflow"), {}, "an address contains a password"),
    (("--set", "name=hidden-value-of-mine"), {}, "the value of one of your secret"),
    ((), {"NAME": "hidden-value-of-mine"}, "the value of one of your secret"),
])
def test_secrets_are_refused_and_not_shown(arguments: tuple[str, ...], variables: dict[str, str], line: str,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "hidden-value-of-mine")
    with pytest.raises(FssError, match=line) as caught:
        refuse_secrets(arguments, variables)
    assert "hidden" not in str(caught.value)
    refuse_secrets(("--out", "s3://bucket/a"), {"OMP_NUM_THREADS": "1"})


def test_variables() -> None:
    assert parse_variables(["A=1", "B=x=y"]) == {"A": "1", "B": "x=y"}
    with pytest.raises(FssError, match="is not of the form NAME=VALUE"):
        parse_variables(["A"])


@dataclass
class Details:
    status: str
    driver_exit_code: int | None = None


@pytest.mark.parametrize(("details", "code"), [
    (Details("SUCCEEDED", 0), 0), (Details("FAILED", 2), 2), (Details("FAILED", -9), 137),
    (Details("STOPPED"), 130), (Details("FAILED"), 1), (Details("SUCCEEDED"), 0),
])
def test_exit_codes(details: Details, code: int) -> None:
    assert exit_code(details) == code
