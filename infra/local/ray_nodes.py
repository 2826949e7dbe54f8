"""A Ray cluster of several nodes on one machine: a head with its dashboard, and workers; each node is a process."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx

from fss_models.errors import FssError
from infra.local.processes import Server, free_port, last_lines, spawn
from pipelines.base.cluster import ENVIRONMENT

OBJECT_STORE_BYTES = 200_000_000  # of each node; it holds little, since photos travel as files; /dev/shm may be small
STOP_WAIT_S = 30  # seconds that a stopped run gets to close; Ray's default of 3 s is too short
AGENT_WAIT_S = 120  # seconds that a node's agents get to start; Ray's default of 30 s is too short on a busy machine


def node_environment(token: Path, variables: Mapping[str, str]) -> dict[str, str]:
    """Environment variables of a node and so of all commands on it: token, storage, and this Python first on PATH."""
    here = str(Path(sys.executable).parent)
    return {**ENVIRONMENT, **variables, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_AUTH_TOKEN": "", "RAY_ADDRESS": "", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S),
            "RAY_agent_register_timeout_ms": str(AGENT_WAIT_S * 1000),
            "PATH": f"{here}{os.pathsep}{os.environ.get('PATH', '')}", "OMP_NUM_THREADS": "1"}


def start_head(folder: Path, address: str, dashboard: str, session: Path, *, cpus: float,
               env: Mapping[str, str], flags: Sequence[str] = ()) -> Server:
    """Start the head. Nodes join it at `address`; its dashboard and Jobs API listen at `dashboard`.

    `flags` are further options of `ray start`.
    """
    options = {"port": address.rpartition(":")[2], "dashboard-host": "127.0.0.1",
               "dashboard-port": dashboard.rpartition(":")[2], "temp-dir": session,
               "ray-client-server-port": free_port(), "include-dashboard": "true"}
    return _start("head", ["--head", *flags], options, folder=folder, cpus=cpus, env=env)


def start_worker(folder: Path, name: str, address: str, *, cpus: float, env: Mapping[str, str]) -> Server:
    """Start a node that joins the head at `address`."""
    return _start(name, [], {"address": address}, folder=folder, cpus=cpus, env=env)


def _start(name: str, flags: list[str], options: Mapping[str, object], *, folder: Path, cpus: float,
           env: Mapping[str, str]) -> Server:
    # Ports that are given: for those that its agents choose a node waits 15 s, which Ray has no setting for, and ends.
    agents = {f"{agent}-port": free_port() for agent in ("dashboard-agent-listen", "dashboard-agent-grpc",
                                                         "metrics-export", "runtime-env-agent")}
    shared = {"node-ip-address": "127.0.0.1", "num-cpus": f"{cpus:g}", "object-store-memory": OBJECT_STORE_BYTES,
              **agents,
              "min-worker-port": 0, "max-worker-port": 0,  # any free ones: several nodes share this machine's ports
              "labels": f"fss-node={name}"}
    ray = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats", *flags]
    command = [*ray, *(f"--{key}={value}" for key, value in {**shared, **options}.items())]
    return spawn(name, command, folder=folder, env=env)


def wait_for_nodes(dashboard: str, token: str, count: int, server: Server, folder: Path, *,
                   wait_s: float = 600.0) -> None:
    """Wait until the cluster has `count` living nodes; `server` is the node that was started last.

    Raises `FssError` if `server` ends, or `wait_s` seconds pass, before that.
    """
    deadline = time.monotonic() + wait_s
    while (alive := count_nodes(dashboard, token)) < count:
        if not server.alive():
            raise FssError(f"Ray's {server.name} did not start: {last_lines(folder, server.name)}", where=str(folder))
        if time.monotonic() > deadline:
            raise FssError(f"only {alive} of {count} Ray nodes have joined after {wait_s:.0f} s", where=str(folder),
                           hint="see the logs there")
        time.sleep(0.5)


def count_nodes(dashboard: str, token: str) -> int:
    """Number of living nodes that the dashboard reports; 0 while it does not answer."""
    try:
        answer = httpx.get(f"{dashboard}/api/v0/nodes", headers={"Authorization": f"Bearer {token}"}, timeout=10)
        rows = answer.json()["data"]["result"]["result"]
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return 0
    return sum(row["state"] == "ALIVE" for row in rows)
