"""Servers of the local cluster: each is started in a session of its own and stopped with all that it started."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from infra.local import topology
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


def test_children_of_a_leader_that_nobody_waited_for_are_ended(tmp_path: Path) -> None:
    """Would catch a stop that takes a zombie for a running leader: a zombie still has its pid."""
    server = spawn("zombie", ["bash", "-c", "sleep 60 & sleep 60"], folder=tmp_path, env={})
    while len(session(server.pid)) < 3:
        time.sleep(0.05)
    leader = psutil.Process(server.pid)
    leader.kill()
    while leader.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.05)
    try:
        assert not server.alive()
        assert server.stop()
        assert session(server.pid) == []
    finally:
        leader.wait(5)


def test_up_starts_a_lost_s3_server_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of the cluster (here one process) keeps running if S3 has its old address, and is replaced if not."""
    storage, started, ended = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, [], []

    def start(folder: Path) -> SimpleNamespace:
        started.append(folder)
        return SimpleNamespace(env=storage)

    monkeypatch.setattr(topology.s3, "start", start)
    monkeypatch.setattr(topology, "down", ended.append)
    monkeypatch.setattr(topology, "_start", lambda root, nodes, cpus: "anew")
    server = spawn("mlflow", ["sleep", "60"], folder=tmp_path, env={})
    try:
        local = topology.LocalCluster(folder=str(tmp_path), session="", address="", dashboard="", mlflow="", cpus=1.0,
                                      storage=dict(storage), bucket="", servers={"mlflow": server})
        local.save()
        assert topology.up(tmp_path) == local
        assert (started, ended) == ([tmp_path / "s3"], [])
        storage["AWS_ENDPOINT_URL"] = "http://127.0.0.1:2"
        assert str(topology.up(tmp_path)) == "anew"
        assert ended == [tmp_path]
    finally:
        server.stop(kill=True)


def test_another_process_of_the_same_number_is_left_alone(tmp_path: Path) -> None:
    server = spawn("other", ["sleep", "60"], folder=tmp_path, env={})
    try:
        earlier = Server(server.name, server.pid, server.began - 100)
        assert not earlier.stop()
        assert server.alive()
    finally:
        server.stop(kill=True)
