"""A head that is lost and started again with its state in Redis: what `components/redis` relies on. Slow.

Real Ray nodes and a real Redis (Debian's package redis-server). Nodes and actors go on; submitted commands end with
their head, and do what is left when they are sent again.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fss_models.errors import FssError
from infra.local.processes import Server, free_port, spawn
from infra.local.ray_nodes import count_nodes, node_environment, start_head, start_worker, wait_for_nodes
from infra.local.topology import ATTEMPTS, TOO_SLOW
from pipelines.base.storage import Store
from tests.infra.nodes import fss, until
from tests.serving.helpers import photo_folder, supports_file

pytestmark = pytest.mark.slow
PASSWORD = "only-in-this-test"
PHOTOS = 240

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


@dataclass
class RedisCluster:
    """A head without CPUs, and worker nodes, whose state is in a Redis; `folder` has the logs and the token."""

    folder: Path
    redis: str
    address: str = field(default_factory=lambda: f"127.0.0.1:{free_port()}")
    dashboard: str = field(default_factory=lambda: f"http://127.0.0.1:{free_port()}")
    servers: list[Server] = field(default_factory=list)
    sessions: list[Path] = field(default_factory=list)

    @property
    def token(self) -> Path:
        """File of Ray's token."""
        return self.folder / "token"

    @property
    def env(self) -> dict[str, str]:
        """The variables of a node. The workers wait for a new head, as long as the operator lets them."""
        return node_environment(self.token, {"RAY_gcs_rpc_server_reconnect_timeout_s": "600"})

    def start_head(self, nodes: int) -> Server:
        """Start a head with nothing on its disk, as in a new pod, and wait until it knows all `nodes`.

        On a busy machine Ray's 30 s to start can be too short.
        """
        state = {"RAY_REDIS_ADDRESS": self.redis, "RAY_external_storage_namespace": "fss"}
        for attempt in range(1, ATTEMPTS + 1):
            self.sessions.append(Path(tempfile.mkdtemp(prefix="fss-ray-")))
            head = start_head(self.folder, self.address, self.dashboard, self.sessions[-1], cpus=0,
                              env={**self.env, **state}, flags=[f"--redis-password={PASSWORD}"])
            self.servers.append(head)
            try:
                wait_for_nodes(self.dashboard, self.token.read_text(), nodes, head, self.folder)
                break
            except FssError as error:
                head.stop(kill=True)
                if attempt == ATTEMPTS or TOO_SLOW not in error.what:
                    raise
        return head

    def start_worker(self, cpus: float) -> None:
        """Start the only worker and wait until it has joined."""
        self.servers.append(start_worker(self.folder, "worker-1", self.address, cpus=cpus, env=self.env))
        wait_for_nodes(self.dashboard, self.token.read_text(), 2, self.servers[-1], self.folder)

    def lose_head(self, head: Server) -> Server:
        """Kill the head with all that runs on it, as if its machine were lost, and start a new one."""
        head.stop(kill=True)
        assert count_nodes(self.dashboard, self.token.read_text()) == 0
        return self.start_head(2)

    def stop(self) -> None:
        """Kill everything."""
        for server in reversed(self.servers):
            server.stop(kill=True)
        for session in self.sessions:
            shutil.rmtree(session, ignore_errors=True)


@contextmanager
def running(folder: Path, redis: str) -> Iterator[RedisCluster]:
    """A cluster for the time of the block, without nodes at first."""
    cluster = RedisCluster(folder, redis)
    cluster.token.write_text("0123456789abcdef" * 4)
    try:
        yield cluster
    finally:
        cluster.stop()


def test_nodes_and_actors_outlive_their_head(redis: str, tmp_path: Path) -> None:
    """Would catch a Ray that forgets its nodes, its actors or its token when its head is started anew."""
    with running(tmp_path, redis) as cluster:
        head = cluster.start_head(1)
        cluster.start_worker(cpus=1)
        calls, pid = _call(cluster.address, cluster.env)
        assert calls == 1
        cluster.lose_head(head)
        assert _call(cluster.address, cluster.env) == (2, pid), "the actor is the same process and has its state"


@pytest.mark.timeout(1500)
def test_a_sweep_and_a_job_resume_when_they_are_sent_again(redis: str, bundle: str, tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a lock that outlives the lost command, and runs of it that go on beside the new ones."""
    with running(tmp_path, redis) as cluster:
        head = cluster.start_head(1)
        cluster.start_worker(cpus=2)
        for name, value in (("RAY_API_SERVER_ADDRESS", cluster.dashboard), ("RAY_AUTH_MODE", "token"),
                            ("RAY_AUTH_TOKEN_PATH", str(cluster.token))):
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        head = _sweep(cluster, head, tmp_path / "sweep")
        _label(cluster, head, bundle, tmp_path)


def _sweep(cluster: RedisCluster, head: Server, out: Path) -> Server:
    """Lose the head once a run has a checkpoint: the same command, sent again, ends with all results."""
    words = ["sweep", "run", "--recipe", "debug", "--set", "methods=[{name: sansa, preset: debug}]", "--set",
             "train.steps=80", "--out", str(out)]
    sent = fss("submit", "--id", "sweep", "--no-follow", "--working-dir", "", *words, cwd=cluster.folder)
    assert sent.returncode == 0, sent.stderr
    runs = Store(str(out / "runs"))
    until(lambda: any("checkpoint_0" in name for name in runs.list()), "a checkpoint")
    assert not runs.list(suffix="/result.json"), "it was ready before the head was lost; raise train.steps"
    head = cluster.lose_head(head)
    again = fss("submit", "--id", "sweep-again", "--working-dir", "", *words, cwd=cluster.folder)
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-1000:]
    assert len(runs.list(suffix="/result.json")) == 2
    assert not runs.list(suffix="/error.json")
    return head


def _label(cluster: RedisCluster, head: Server, bundle: str, folder: Path) -> None:
    """Lose the head once some parts are written: the same command, sent again, writes the others."""
    photo_folder(folder / "given" / "photos", PHOTOS)
    supports = supports_file(folder / "given")
    out = Store(str(folder / "labels"))
    words = ["label", "--images", str(folder / "given" / "photos"), "--supports", str(supports),
             "--out", out.url, "--bundle", bundle, "--engine", "actors",
             "--workspace", str(folder / "ws"), "--set", "label.chunk=2", "--set", "serve.threads=1"]
    sent = fss("submit", "--id", "label", "--no-follow", "--working-dir", "", *words, cwd=folder)
    assert sent.returncode == 0, sent.stderr
    until(lambda: len(out.list("parts")) > 4, "a few parts")
    cluster.lose_head(head)
    first = {name: out.read_bytes(name) for name in out.list("parts")}
    assert len(first) < PHOTOS // 2, "it was ready before the head was lost; raise PHOTOS"
    again = fss("submit", "--id", "label-again", "--working-dir", "", *words, cwd=folder)
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-1000:]
    rows = [row["image_id"] for name in out.list("parts") for row in out.read_table(name).to_pylist()]
    assert rows == list(range(1, PHOTOS + 1))
    assert {name: out.read_bytes(name) for name in first} == first


def _call(address: str, env: dict[str, str]) -> tuple[int, int]:
    """Number of calls that the actor has answered, and its process."""
    done = subprocess.run([sys.executable, "-c", KEEPER, address], capture_output=True, text=True, check=False,
                          env={**os.environ, **env}, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    calls, pid = json.loads(done.stdout.strip().splitlines()[-1])
    return calls, pid
