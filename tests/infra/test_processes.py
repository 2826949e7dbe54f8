"""Servers of the local cluster: started in a session of their own, ended with all they started."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from infra.local.processes import Server, spawn

STUBBORN = "trap '' TERM; while :; do sleep 60 & sleep 0.05; done"  # ignores SIGTERM and starts children for ever


def session(pid: int) -> list[int]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(process.pid) == pid and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


@pytest.mark.parametrize("kill", [True, False])
def test_a_server_ends_with_children_that_it_goes_on_starting(tmp_path: Path, kill: bool) -> None:
    server = spawn("stubborn", ["bash", "-c", STUBBORN], folder=tmp_path, env={})
    while len(session(server.pid)) < 4:
        time.sleep(0.05)
    assert server.stop(kill=kill, wait_s=0.3)
    assert session(server.pid) == []
    assert not server.alive()
    assert not server.stop()


def test_what_a_crashed_server_left_is_ended(tmp_path: Path) -> None:
    server = spawn("crashed", ["bash", "-c", "sleep 60 & sleep 60"], folder=tmp_path, env={})
    while len(session(server.pid)) < 3:
        time.sleep(0.05)
    psutil.Process(server.pid).kill()
    psutil.Process(server.pid).wait(5)
    assert session(server.pid)
    assert server.stop()
    assert session(server.pid) == []


def test_another_process_of_the_same_number_is_left_alone(tmp_path: Path) -> None:
    server = spawn("other", ["sleep", "60"], folder=tmp_path, env={})
    try:
        earlier = Server(server.name, server.pid, server.began - 100)
        assert not earlier.stop()
        assert server.alive()
    finally:
        server.stop(kill=True)
