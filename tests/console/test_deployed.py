"""The Serve config file, deployed by Ray's own `serve deploy` on a cluster that runs; a new champion under load.

Would catch a builder that Ray cannot call, requests that are lost while the champion is replaced, memories of the old
method used with the new one, counters that begin at 1, and folders whose packages are taken for ours.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from fss_models import registry
from fss_models.bundle import BundleInfo
from fss_models.errors import FssError
from infra.local.processes import free_port
from infra.local.ray_nodes import node_environment, start_head, wait_for_nodes
from pipelines.bundles.bundle import replace_bundle, save_bundle
from pipelines.inference.labeler import Labeler
from pipelines.inference.masks import Label
from pipelines.inference.support_files import read_support_file, support_request
from tests.serving.helpers import ball, clean_env, encoded, hiding_folder, supports_file, wait_for

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "infra" / "kuberay" / "champion" / "serve.yaml"
TOKEN = "a-token-of-this-test"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
CLIENTS = 3


def test_ray_can_call_the_builder(ray_cluster: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as call

    from pipelines.console.deployed import champion

    save_bundle(str(tmp_path / "champion"), registry.build("prior", "nano"))
    monkeypatch.setenv("FSS_TOKEN", TOKEN)
    args = {**yaml.safe_load(FILE.read_text())["applications"][0]["args"], "workspace": str(tmp_path), "device": "cpu"}
    spec = call(champion, args)._bound_deployment.init_args[0]
    assert (spec.model.serve.replicas, spec.model.follow) == (2, str(tmp_path / "champion"))
    assert not call(champion, {**args, "follow_s": 0})._bound_deployment.init_args[0].model.follow
    for change, line in (({"replicas": "many"}, r"args\.replicas: .*integer"), ({"devise": "cpu"}, r"args\.devise: "),
                         ({"max_replicas": 1}, r"args: max_replicas is 1, less than replicas")):
        with pytest.raises(FssError, match=line):
            call(champion, {**args, **change})
    monkeypatch.delenv("FSS_TOKEN")
    with pytest.raises(FssError, match="the service has no token"):
        call(champion, args)


@contextmanager
def ray_head(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A Ray head with two CPUs and FSS_TOKEN: the URL of its dashboard, and the variables that reach it."""
    folder.mkdir()
    token = folder / "token"
    token.write_text("f" * 64)
    dashboard, session = f"http://127.0.0.1:{free_port()}", Path("/tmp") / f"fss-serve-{os.getpid()}"
    nodes = node_environment(token, {"FSS_TOKEN": TOKEN, "FSS_SHIPPED": os.environ["FSS_SHIPPED"],
                                     "PYTHONPATH": str(ROOT)})
    head = start_head(folder, f"127.0.0.1:{free_port()}", dashboard, session, cpus=2, env=nodes)
    try:
        wait_for_nodes(dashboard, token.read_text(), 1, head, folder, wait_s=180)
        yield dashboard, clean_env(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token), PYTHONPATH=str(ROOT),
                                   RAY_API_SERVER_ADDRESS=dashboard)
    finally:
        head.stop()


@dataclass
class Load:
    """Clients that send one photo after the other until they are stopped."""

    url: str
    support_id: str
    photo: bytes
    answers: list[tuple[int, str, Any]] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Send requests; each answer is kept as (status, bundle id, result)."""
        import base64

        body = {"support_id": self.support_id, "images": [base64.b64encode(self.photo).decode()]}
        with httpx.Client(timeout=120, headers=HEADERS) as client:
            while not self.stop.is_set():
                answer = client.post(f"{self.url}/v1/segment", json=body)
                found = answer.json()
                self.answers.append((answer.status_code, found.get("bundle_id", answer.text[:200]),
                                     found.get("results", [{}])[0]))

    def bundles(self) -> Counter[str]:
        """Bundle id -> number of answers."""
        return Counter(bundle for _, bundle, _ in list(self.answers))


def expected(bundle: str, supports: Path, photo: bytes) -> Label:
    """The label that a bundle gives in this process."""
    labeler = Labeler(bundle)
    found = labeler.label([photo], labeler.add_support(read_support_file(str(supports))), batch=1)[0]
    assert isinstance(found, Label)
    return found


def deployed(place: Path, dashboard: str, env: dict[str, str], workspace: Path) -> str:
    """Deploy the file for this workspace with `serve deploy`, as a user does; the URL of the service."""
    config, port = yaml.safe_load(FILE.read_text()), free_port()
    config["http_options"] |= {"host": "127.0.0.1", "port": port}
    config["applications"][0]["args"] |= {"workspace": str(workspace), "device": "cpu", "follow_s": 1, "threads": 1}
    (place / "serve.yaml").write_text(yaml.safe_dump(config))
    serve = str(Path(sys.executable).with_name("serve"))
    done = subprocess.run([serve, "deploy", "-a", dashboard, str(place / "serve.yaml")], env=env, cwd=place,
                          capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    url, status = f"http://127.0.0.1:{port}", [serve, "status", "-a", dashboard]

    def running() -> bool:
        shown = subprocess.run(status, env=env, cwd=place, capture_output=True, text=True, timeout=120, check=False)
        app = (yaml.safe_load(shown.stdout) or {}).get("applications", {}).get("champion", {})
        assert app.get("status") not in ("DEPLOY_FAILED", "UNHEALTHY"), app
        return bool(app.get("status") == "RUNNING")

    wait_for(running, 240)
    return url


def under_load(url: str, support: str, photo: bytes, workspace: Path, bundle: str, info: BundleInfo) -> Load:
    """Promote a bundle while clients send requests, until all answers are of the new one."""
    load = Load(url, support, photo)
    threads = [threading.Thread(target=load.run) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: len(load.answers) >= 10 * CLIENTS)
        replace_bundle(bundle, str(workspace / "champion"), info)
        wait_for(lambda: load.bundles()[info.bundle_id] >= 10)
        seen = len(load.answers)
        wait_for(lambda: len(load.answers) >= seen + 20 * CLIENTS)
    finally:
        load.stop.set()
        for thread in threads:
            thread.join(120)
    return load


def check_counters(url: str) -> None:
    def exported() -> str:
        return httpx.get(f"{url}/metrics", headers=HEADERS, timeout=60).text

    wait_for(lambda: "ray_fss_requests_total" in exported(), 60)
    rows = [line for line in exported().splitlines() if line.startswith("ray_fss_requests_total")]
    failed = [line for line in rows if 'status="500"' in line]
    assert {float(line.rpartition(" ")[2]) for line in failed} == {0.0}, rows
    assert any('path="/v1/segment"' in line for line in failed)


@pytest.mark.slow
def test_a_deployed_file_takes_a_new_champion_under_load(tmp_path: Path) -> None:
    workspace, supports = tmp_path / "ws", supports_file(tmp_path)
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    old = save_bundle(first, registry.build("prior", "nano"))
    new = save_bundle(second, registry.build("sam2_frozen", "nano"))
    replace_bundle(first, str(workspace / "champion"), old)
    photo, sent = encoded(ball(7)[0]), support_request(read_support_file(str(supports)))
    with ray_head(tmp_path / "head") as (dashboard, env):
        url = deployed(tmp_path, dashboard, env, workspace)
        assert httpx.post(f"{url}/v1/supports", json=sent, timeout=60).status_code == 401
        support = httpx.post(f"{url}/v1/supports", json=sent, headers=HEADERS, timeout=60).json()["support_id"]
        load = under_load(url, support, photo, workspace, second, new)
        assert Counter(status for status, _, _ in load.answers).keys() == {200}, load.answers[-5:]
        assert load.bundles().keys() == {old.bundle_id, new.bundle_id}
        print(f"{len(load.answers)} requests, none failed: {dict(load.bundles())}")
        for bundle, info in ((first, old), (second, new)):
            label = expected(bundle, supports, photo)
            found = [result for _, name, result in load.answers if name == info.bundle_id]
            assert all(f["segmentation"]["counts"] == label.counts for f in found), info.method
            assert all(f["score"] == pytest.approx(label.score, abs=1e-4) for f in found), info.method
        wait_for(lambda: httpx.get(f"{url}/v1/health", timeout=60).json()["bundle_id"] == new.bundle_id, 30)
        check_counters(url)
        submit_from(hiding_folder(tmp_path / "mine"), env)


def submit_from(folder: Path, env: dict[str, str]) -> None:
    """A command submitted from a folder with packages named like ours runs with our own."""
    command = [sys.executable, "-P", "-m", "jobs.cli", "submit", "bundles", "list", "--json"]
    began = time.monotonic()
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not sent, because they would hide fss's own packages of these names: pipelines, jobs, infra" in done.stderr
    assert '"bundles": []' in done.stdout, done.stdout
    print(f"submitted in {time.monotonic() - began:.0f} s: {json.dumps(done.stdout[-200:])}")
