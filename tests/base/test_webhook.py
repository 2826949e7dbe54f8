"""Events reach a real HTTP receiver, signed, at least once; a dead one costs a line."""

from __future__ import annotations

import base64
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from fss_models.errors import FssError
from pipelines.base import webhook
from pipelines.base.storage import Store
from pipelines.base.webhook import EVENTS, Outbox, read_secret, signature, told_if_it_fails
from tests.fixtures.receiver import Receiver

KEY = "a secret that nobody guesses"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real pauses, a hundred times shorter."""
    monkeypatch.setenv("FSS_WEBHOOK_SECRET", KEY)
    sleep = time.sleep
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: sleep(seconds / 100))


def waiting(folder: Path) -> list[Any]:
    found: list[Any] = json.loads((folder / EVENTS).read_text())["waiting"]
    return found


def test_an_event_is_signed(receiver: Receiver, tmp_path: Path) -> None:
    Outbox(Store(str(tmp_path)), receiver.url).tell("label.done", {"job": "gear", "images": 3})
    (one,) = receiver.got
    assert one.event["type"] == "label.done"
    assert one.event["data"] == {"job": "gear", "images": 3}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", one.event["timestamp"])
    assert one.headers["webhook-id"] == one.event["id"]
    sent = int(one.headers["webhook-timestamp"])
    assert abs(sent - time.time()) < 60
    assert one.headers["webhook-signature"] == signature(KEY.encode(), one.event["id"], sent, one.body)
    assert waiting(tmp_path) == []
    assert KEY not in (tmp_path / EVENTS).read_text()


def test_the_signature_is_that_of_the_specification() -> None:
    """The worked example of the Standard Webhooks specification."""
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    found = signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize(("text", "key"), [("plain text", b"plain text"), ("whsec_AAEC", b"\x00\x01\x02")])
def test_secrets(text: str, key: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSS_WEBHOOK_SECRET", text)
    assert read_secret() == key


@pytest.mark.parametrize(("text", "line"), [("", "there is no FSS_WEBHOOK_SECRET"),
                                            ("whsec_?", "base64 does not follow")])
def test_wrong_secrets(text: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSS_WEBHOOK_SECRET", text)
    with pytest.raises(FssError, match=line):
        read_secret()


def test_it_is_sent_again_until_it_arrives(receiver: Receiver, tmp_path: Path,
                                           capsys: pytest.CaptureFixture[str]) -> None:
    receiver.answers = [500, 429, 0]
    Outbox(Store(str(tmp_path)), receiver.url).tell("label.done", {})
    assert [one.event["id"] for one in receiver.got] == [receiver.got[0].event["id"]] * 4
    assert waiting(tmp_path) == []
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("status", "tries"), [(503, webhook.ATTEMPTS), (404, 1), (302, 1)])
def test_a_dead_receiver_is_one_line_and_hears_it_later(receiver: Receiver, tmp_path: Path, status: int, tries: int,
                                                        capsys: pytest.CaptureFixture[str]) -> None:
    """The events wait in their order; while older ones wait a new one costs one attempt."""
    receiver.answers = [status] * (tries + 1)
    outbox = Outbox(Store(str(tmp_path)), f"{receiver.url}?key=mine")
    outbox.tell("label.failed", {"number": 1})
    assert len(receiver.got) == tries
    said = capsys.readouterr().err
    assert said == f"warning: 127.0.0.1 was not told: HTTP {status}; events that wait in events.json: 1\n"
    outbox.tell("label.failed", {"number": 2})
    assert len(receiver.got) == tries + 1
    outbox.tell("label.done", {"number": 3})
    assert [one.event["data"]["number"] for one in receiver.got[tries + 1:]] == [1, 2, 3]
    assert waiting(tmp_path) == []


def test_a_receiver_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for url in ("http://127.0.0.1:9/", "http://[::bad/", "http://no such host/"):
        Outbox(Store(str(tmp_path / "a")), url).tell("label.done", {}, attempts=2)
    assert len(capsys.readouterr().err.splitlines()) == 3
    assert len(waiting(tmp_path / "a")) == 3


def test_an_event_that_is_recorded_is_not_a_new_one(receiver: Receiver, tmp_path: Path) -> None:
    """A process that was killed after it sent an event sends it again, as itself; one that was told is not sent."""
    folder = Store(str(tmp_path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(webhook, "_post", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            Outbox(folder, receiver.url).tell("label.done", {"n": 1}, key="done")
    for _ in range(2):
        Outbox(folder, receiver.url).tell("label.done", {"n": 2}, key="done")
    (one,) = receiver.got
    assert one.event["data"] == {"n": 1}


def test_what_waits_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "MOST_WAITING", 3)
    outbox = Outbox(Store(str(tmp_path)), "http://127.0.0.1:9/")
    for number in range(5):
        outbox.tell("label.done", {"n": number}, attempts=1)
    assert [one["data"]["n"] for one in waiting(tmp_path)] == [2, 3, 4]


@pytest.mark.parametrize(("error", "told"), [(FssError("no disk", where="/a"), ("failed", "/a: no disk")),
                                             (ZeroDivisionError("by 0"), ("failed", "ZeroDivisionError: by 0")),
                                             (KeyboardInterrupt(), ("stopped", ""))])
def test_what_ends_with_an_error_is_told(error: BaseException, told: tuple[str, str]) -> None:
    """Also where the folder cannot be written: the first error is raised."""
    found: list[tuple[str, str]] = []

    def tell(state: str, line: str) -> None:
        found.append((state, line))
        raise FssError("cannot write")

    with pytest.raises(type(error)) as raised, told_if_it_fails(tell):
        raise error
    assert raised.value is error
    assert found == [told]
