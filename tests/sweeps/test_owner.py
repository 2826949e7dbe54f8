"""One sweep at a time on a workspace: refused, cancelled, and let go of by a killed owner."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fss_models.errors import FssError
from infra.local.s3 import S3Server
from pipelines.base.storage import Store
from pipelines.sweeps import owner
from pipelines.sweeps.owner import CANCEL, OWNER, cancel, is_alive, own_workspace
from pipelines.sweeps.watch import RunState, SweepWatch, format_state, read_state

HOLD = """
import sys, time
from pipelines.sweeps import owner
from pipelines.sweeps.owner import own_workspace
owner.BEAT_S = 0.5
with own_workspace(sys.argv[1]) as held:
    print("held", flush=True)
    try:
        time.sleep(120)
    except KeyboardInterrupt:
        print(held.ended, flush=True)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[object]:
    """A function that starts another process which owns a workspace."""
    started: list[subprocess.Popen[str]] = []

    def start(where: str) -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, "-c", HOLD, where], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def refused(where: str) -> str:
    with pytest.raises(FssError) as error, own_workspace(where):
        raise AssertionError("two owners")
    assert "\n" not in str(error.value)
    return str(error.value)


def check_life(where: str, holder: object) -> None:
    """Refused while the owner lives; free once it is killed, and once it is cancelled."""
    process = holder(where)  # type: ignore[operator]
    assert is_alive(Store(where))
    line = refused(where)
    assert f"a sweep is under way here (process {process.pid}" in line
    assert "fss sweep cancel" in line
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not is_alive(Store(where))
    with own_workspace(where) as held:
        assert held.ended == ""
    assert not Store(where).exists(OWNER)

    process = holder(where)  # type: ignore[operator]
    began = time.monotonic()
    cancel(where)
    assert time.monotonic() - began < 30
    assert process.stdout.read() == "cancelled\n"
    assert not is_alive(Store(where))
    assert not Store(where).exists(CANCEL)
    with pytest.raises(FssError, match="no sweep is under way"):
        cancel(where)
    with own_workspace(where):
        pass


def test_a_folder_has_one_owner(tmp_path: Path, holder: object) -> None:
    check_life(str(tmp_path / "out"), holder)


def test_a_bucket_has_one_owner(s3_server: S3Server, holder: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "BEAT_S", 0.5)
    check_life(f"{s3_server.url}/owned", holder)


def test_an_owner_elsewhere_is_given_up_when_its_beat_stands_still(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process of an owner on another machine cannot be inspected, and its clock may be wrong by hours."""
    monkeypatch.setattr(owner, "BEAT_S", 0.4)
    place = f"{s3_server.url}/elsewhere"
    about = {"id": "x", "host": "another-machine", "pid": 1, "born": 0.0, "beat": 7}
    store = Store(place)
    store.write_json(OWNER, about | {"time": time.time()})
    assert is_alive(store)
    assert "another-machine" in refused(place)
    store.write_json(OWNER, about | {"time": time.time() - 7200})
    assert not is_alive(store)
    began = time.monotonic()
    with own_workspace(place):
        assert time.monotonic() - began > 3 * 0.4, "it looked whether the beat goes on"


def test_two_claims_on_a_bucket_at_once_leave_one_owner(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both saw a free workspace; the later claim overwrote the earlier, whose owner finds out and gives way."""
    place = f"{s3_server.url}/race"
    sleep = time.sleep

    def other_claims(seconds: float) -> None:
        if seconds == owner.SETTLE_S:
            Store(place).write_json(OWNER, {"id": "other", "host": "h", "pid": 2, "born": 0, "beat": 1,
                                            "time": time.time()})
        sleep(min(seconds, 0.1))

    monkeypatch.setattr(owner.time, "sleep", other_claims)
    assert "process 2 on h" in refused(place)
    assert Store(place).read_json(OWNER)["id"] == "other", "the other's claim stays"


def test_storage_that_refuses_ends_no_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner keeps the workspace, and the workspace does not count as free."""
    def refuse(self: Store, relative: str = "") -> bytes:
        asked.append(relative)
        raise FssError("refuses the credentials", where=self.path(relative))

    monkeypatch.setattr(owner, "BEAT_S", 0.1)
    asked: list[str] = []
    with own_workspace(str(tmp_path)) as held:
        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            patch.setattr(Store, "read_bytes", refuse)
            time.sleep(0.5)
            assert asked.count(CANCEL) > 1
            with pytest.raises(FssError, match="refuses the credentials"):
                is_alive(Store(str(tmp_path)))
        assert held.ended == ""
        assert is_alive(Store(str(tmp_path)))
        beat = held.about["beat"]
        time.sleep(0.5)
        assert held.about["beat"] > beat, "it goes on"
    assert not Store(str(tmp_path)).exists(OWNER)


def test_state_of_a_killed_sweep_reads_as_stopped(tmp_path: Path) -> None:
    rows = [RunState(run=f"run-{i}", cell="[x]=1" if i == 2 else "") for i in range(3)]
    with SweepWatch(str(tmp_path), "s", rows) as watch:
        watch.update({"run-0": {"stage": "training", "step": 4, "of": 10, "loss": 0.5, "episodes_per_s": 2.0,
                                "left_s": 3.0}}, 100.0)
    with own_workspace(str(tmp_path)):
        state = read_state(str(tmp_path))
        assert state.status == "running"
        assert state.line == "0 of 3 runs done, 1 under way, 2 waiting; about 2 min left"
        table = format_state(state)
        assert re.search(r"run-0 +training +4/10 +0.500 +2.0 +3 s", table)
        assert "run-2 ([x]=1)" in table
    stopped = read_state(str(tmp_path))
    assert (stopped.status, stopped.why) == ("stopped", "its process is gone")
    assert [r.status for r in stopped.runs] == ["waiting"] * 3
    with pytest.raises(FssError, match="no sweep was run here"):
        read_state(str(tmp_path / "elsewhere"))
