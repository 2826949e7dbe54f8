"""`fss label --watch` is killed again and again while photos arrive: every photo has one label.

Would catch photos that are lost or doubled between a listing, a manifest and parts of real processes, and a Ctrl-C that
takes the model's processes with it. Slow: real processes.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from infra.local.s3 import S3Server
from pipelines.base.storage import Store
from tests.labelling.commands import Command, started
from tests.serving.helpers import ball, encoded, supports_file, wait_for

pytestmark = pytest.mark.slow
PHOTOS, CHUNK, KILLS = 48, 4, 3
AHEAD = 12  # photos that have arrived and have no label, at most


def labelled(out: Store) -> Counter[str]:
    """How often each photo is in the parts."""
    return Counter(row["file_name"] for name in out.list("parts") for row in out.read_table(name).to_pylist())


@contextmanager
def arriving(photos: Store, out: Store) -> Iterator[None]:
    """Photos arrive during the block, a few before they are labelled, and in pieces in a folder; all have at its end.
    """
    ended = threading.Event()

    def send() -> None:
        for number in range(PHOTOS):
            name, data = f"{number * 7 % PHOTOS:03d}.jpg", encoded(ball(number)[0], quality=90)
            if photos.is_local:
                with Path(photos.path(name)).open("wb", buffering=0) as file:
                    file.write(data[:500])
                    time.sleep(0.05)
                    file.write(data[500:])
            else:
                photos.write_bytes(name, data)
            while not ended.wait(0.2) and number - sum(labelled(out).values()) >= AHEAD:
                pass

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def wait_for_photos(command: Command, count: int) -> None:
    def there() -> bool:
        assert command.process.poll() is None, command.text()
        return sum(labelled(command.out).values()) >= count

    wait_for(there, 200)


@pytest.mark.parametrize("place", ["folder", "s3"])
def test_killed_while_photos_arrive(place: str, bundle: str, s3_server: S3Server, tmp_path: Path) -> None:
    root = str(tmp_path / "given") if place == "folder" else f"{s3_server.url}/watch-kill"
    photos, out = Store(f"{root}/photos"), Store(f"{root}/out")
    if photos.is_local:
        Path(photos.url).mkdir(parents=True)
    words = ["label", "--watch", "--every", "1", "--images", photos.url, "--supports", str(supports_file(tmp_path)),
             "--out", out.url, "--bundle", bundle, "--workspace", str(tmp_path / "ws"),
             "--set", f"label.chunk={CHUNK}", "--set", "serve.threads=1"]
    with arriving(photos, out):
        for kill in range(1, KILLS + 1):
            with started(words, out.url, tmp_path / "log") as command:
                wait_for_photos(command, 8 * kill)
                command.kill()
            assert set(labelled(out).values()) == {1}
    assert len(labelled(out)) < PHOTOS, "the watch was done too early; raise PHOTOS"
    with started(words, out.url, tmp_path / "log") as command:
        wait_for_photos(command, PHOTOS)
        wait_for(lambda: out.exists("labels.json") and len(out.read_json("labels.json")["images"]) == PHOTOS, 60)
        os.killpg(command.process.pid, signal.SIGINT)  # as a terminal does
        command.ends_well(100)
    assert "stopped; the same command goes on" in command.text()
    assert labelled(out) == Counter({f"{n:03d}.jpg": 1 for n in range(PHOTOS)})
    assert len(out.list("parts")) == PHOTOS // CHUNK
    assert out.read_json("summary.json")["failed"] == 0
