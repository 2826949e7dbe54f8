"""A head that is lost and started again with its state in Redis: what `components/redis` relies on. Slow.

Real Ray nodes and a real Redis (Debian's package redis-server). Sweeps and labelling are not part of this test.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fss_models.errors import FssError
from infra.local.processes import Server, free_port, spawn
from infra.local.ray_nodes import count_nodes, node_environment, start_head, start_worker, wait_for_nodes
from infra.local.topology import ATTEMPTS, TOO_SLOW

pytestmark = pytest.mark.slow
PASSWORD = "only-in-this-test"

KEEPER = """
import json, os, sys
import ray
ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)

class Keeper:
    def __init__(self):
        self.calls = 0
    def call(self):
        self.calls += 1
        return self.calls, os.getpid()

on_worker = {"fss-node": "worker-1"}
keeper = ray.remote(Keeper).options(name="keeper", namespace="fss", lifetime="detached", get_if_exists=True,
                                    label_selector=on_worker).remote()
print(json.dumps(ray.get(keeper.call.remote(), timeout=200)))
"""


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[str]:
    """Address of a Redis server that asks for a password."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("needs Redis (apt-get install redis-server)")
    port = free_port()
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path), "--appendonly", "yes",
               "--appendfsync", "always", "--requirepass", PASSWORD]
    server = spawn("redis", command, folder=tmp_path, env={})
    yield f"127.0.0.1:{port}"
    server.stop()


def test_nodes_and_actors_outlive_their_head(redis: str, tmp_path: Path) -> None:
    """Would catch a Ray that forgets its nodes, its actors or its token when its head is started anew."""
    token = tmp_path / "token"
    token.write_text("0123456789abcdef" * 4)
    env = node_environment(token, {"RAY_gcs_rpc_server_reconnect_timeout_s": "600"})  # as the operator sets it
    state = {"RAY_REDIS_ADDRESS": redis, "RAY_external_storage_namespace": "fss"}
    sessions: list[Path] = []
    address, dashboard = f"127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}"
    servers: list[Server] = []

    def head() -> Server:
        """A head with nothing on its disk, as in a new pod. On a busy machine Ray's 30 s to start can be too short."""
        for attempt in range(1, ATTEMPTS + 1):
            sessions.append(Path(tempfile.mkdtemp(prefix="fss-ray-")))
            servers.append(start_head(tmp_path, address, dashboard, sessions[-1], cpus=0, env={**env, **state},
                                      flags=[f"--redis-password={PASSWORD}"]))
            try:
                wait_for_nodes(dashboard, token.read_text(), 1, servers[-1], tmp_path)
                break
            except FssError as error:
                servers[-1].stop(kill=True)
                if attempt == ATTEMPTS or TOO_SLOW not in error.what:
                    raise
        return servers[-1]

    try:
        first = head()
        servers.append(start_worker(tmp_path, "worker-1", address, cpus=1, env=env))
        wait_for_nodes(dashboard, token.read_text(), 2, servers[-1], tmp_path)
        calls, pid = _call(address, env)
        assert calls == 1
        first.stop(kill=True)
        assert count_nodes(dashboard, token.read_text()) == 0
        wait_for_nodes(dashboard, token.read_text(), 2, head(), tmp_path)
        assert _call(address, env) == (2, pid), "the actor is the same process and has its state"
    finally:
        for server in reversed(servers):
            server.stop(kill=True)
        for session in sessions:
            shutil.rmtree(session, ignore_errors=True)


def _call(address: str, env: dict[str, str]) -> tuple[int, int]:
    """Number of calls that the actor has answered, and its process."""
    done = subprocess.run([sys.executable, "-c", KEEPER, address], capture_output=True, text=True, check=False,
                          env={**os.environ, **env}, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    calls, pid = json.loads(done.stdout.strip().splitlines()[-1])
    return calls, pid
