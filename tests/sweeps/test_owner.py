"""One sweep at a time on a workspace: refused, cancelled, and let go of by a killed owner."""

from __future__ import annotations

import multiprocessing
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from fss_models.errors import FssError
from infra.local.s3 import S3Server
from pipelines.base.storage import Store
from pipelines.sweeps import owner
from pipelines.sweeps.owner import CANCEL, OWNER, Owner, cancel, is_alive, own_workspace
from pipelines.sweeps.watch import RunState, SweepWatch, format_state, read_state
from tests.data.faulty_s3 import faulty_proxy
from tests.serving.helpers import wait_for

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
    assert f"a sweep, search or pretraining is under way here (process {process.pid}" in line
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


def _claim_all(places: list[str], ready: Barrier, won: SimpleQueue[list[bool]]) -> None:
    """Claim places one after the other, each at the same moment as the other processes. The winners are alive then."""
    found = []
    for place in places:
        claimed = Owner(place)
        ready.wait(60)
        found.append(claimed.claim())
        ready.wait(60)
    won.put(found)


def race(places: list[str]) -> list[int]:
    """How many of two processes won each place."""
    start = multiprocessing.get_context("spawn")
    ready, won = start.Barrier(2), start.SimpleQueue()
    processes = [start.Process(target=_claim_all, args=(places, ready, won)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    return [sum(both) for both in zip(won.get(), won.get(), strict=True)]


def test_one_of_two_processes_wins_a_bucket(s3_server: S3Server) -> None:
    """Twenty free workspaces, then twenty whose owner is dead: none has two owners, and none is left without."""
    free = [f"{s3_server.url}/race/free-{i}" for i in range(20)]
    dead = [f"{s3_server.url}/race/dead-{i}" for i in range(20)]
    gone = subprocess.Popen(["true"])
    gone.wait()
    for place in dead:
        Store(place).write_json(OWNER, {"id": "dead", "host": socket.gethostname(), "pid": gone.pid, "born": 0.0,
                                        "beat": 7, "time": time.time()})
    assert race(free + dead) == [1] * 40
    assert all(Store(place).read_json(OWNER)["id"] != "dead" for place in dead)


def test_a_heartbeat_does_not_overwrite_another_owner(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that stood still for minutes was replaced: it ends, and owner.json stays the other's."""
    monkeypatch.setattr(owner, "BEAT_S", 0.4)
    place = f"{s3_server.url}/replaced"
    with own_workspace(place) as held:
        Store(place).write_json(OWNER, {"id": "other", "host": "h", "pid": 2, "born": 0, "beat": 1,
                                        "time": time.time()})
        with pytest.raises(KeyboardInterrupt):
            time.sleep(30)
    assert held.ended == "another sweep has taken over this workspace"
    assert Store(place).read_json(OWNER)["id"] == "other"


def test_an_owner_keeps_its_bucket_when_answers_are_lost(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that is repeated after a lost answer finds the first one's file there, which is no other owner."""
    monkeypatch.setattr(owner, "BEAT_S", 0.1)
    place = f"{s3_server.url}/lost"
    with faulty_proxy(s3_server.endpoint, kinds=("cut short", "503 unavailable"), every=4) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        with own_workspace(place) as held:
            wait_for(lambda: held.about["beat"] > 5 and proxy.failed["cut short"] > 2)
        assert held.ended == ""


@pytest.mark.parametrize("conditions", ["refused", "ignored"])
def test_a_bucket_without_conditional_writes_is_refused(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, conditions: str
) -> None:
    place = f"{s3_server.url}/{conditions}"
    with faulty_proxy(s3_server.endpoint, kinds=("503 unavailable",), every=10**9) as proxy:
        proxy.conditions = conditions
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        assert re.search(r"no conditional writes \(If-None-Match.*\(use AWS S3.* or a local folder\)$", refused(place))
        assert not [f for f in Store(place).list() if "owner" in f], "nothing is left there"


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


def test_an_answer_that_comes_after_the_end_does_not_end_the_process(tmp_path: Path,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread waits for a slow storage while the sweep ends, and then finds its owner.json deleted."""
    asked, answered = threading.Event(), threading.Event()

    def slow(self: Owner) -> bool:
        asked.set()
        answered.wait(20)
        return False

    monkeypatch.setattr(owner, "BEAT_S", 0.1)
    monkeypatch.setattr(Owner, "_beat", slow)
    signals: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: signals.append(number))
    try:
        with own_workspace(str(tmp_path)) as held:
            assert asked.wait(20)
        assert held.waits
        answered.set()
        wait_for(lambda: not held.waits)
        assert signals == []
    finally:
        signal.signal(signal.SIGUSR1, before)


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
