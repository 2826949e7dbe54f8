"""A sweep on a cluster whose machines come and go: Ray's autoscaler with its provider of nodes on one machine. Slow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from infra.local.processes import free_port
from infra.local.ray_nodes import node_environment, start_head, wait_for_nodes
from pipelines.config.data import DataConfig
from pipelines.config.evaluate import EvalConfig
from pipelines.config.method import MethodConfig
from pipelines.config.recipe import Recipe
from pipelines.config.sweep import SweepConfig
from pipelines.config.train import TrainConfig
from pipelines.sweeps.owner import cancel
from tests.infra.nodes import until

pytestmark = pytest.mark.slow
EMPTY = {"auth": {}, "docker": {}, "file_mounts": {}, "cluster_synced_files": [], "initialization_commands": [],
         "setup_commands": [], "head_setup_commands": [], "worker_setup_commands": [], "head_start_ray_commands": [],
         "worker_start_ray_commands": [], "rsync_exclude": [], "rsync_filter": []}
# The head's id, by which the provider knows it.
HEAD = "f" * 51 + "00000"
# The first autoscaler grants what it can of a request, the second all of it or nothing: of three runs, two fit here.
VERSIONS: dict[str, dict[str, str]] = {
    "v1": {}, "v2": {"RAY_enable_autoscaler_v2": "1", "RAY_CLOUD_INSTANCE_ID": HEAD,
                     "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD}}

SWEEP = """
import json, sys, threading
from pathlib import Path
from pipelines.base.cluster import prepare_environment
prepare_environment()
import ray, yaml
from ray._private.worker import global_worker
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply
from pipelines.config.recipe import Recipe
from pipelines.sweeps.sweep import run_sweep

def requested():
    reply = GetClusterStatusReply()
    reply.ParseFromString(global_worker.gcs_client.get_cluster_status(timeout_s=10))
    v2 = sum(r.count for c in reply.cluster_resource_state.cluster_resource_constraints for r in c.resource_requests)
    v1 = global_worker.gcs_client.internal_kv_get(b"autoscaler_resource_request", None)
    return v2 + len(json.loads(v1 or b"[]"))

def main():
    ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
    over, most, machines = threading.Event(), [0], [0]
    def watch():
        while not over.wait(0.5):
            most.append(requested())
            machines.append(sum(n["Alive"] and n["Resources"].get("CPU", 0) > 0 for n in ray.nodes()))
    thread = threading.Thread(target=watch)
    thread.start()
    errors = []
    try:
        errors = [r.error for r in run_sweep(Recipe.model_validate(yaml.safe_load(Path(sys.argv[2]).read_text())))]
    finally:
        over.set()
        thread.join()
        print(json.dumps({"errors": errors, "asked": max(most), "machines": max(machines), "after": requested()}))

main()
"""


@contextmanager
def autoscaling_head(folder: Path, version: str, workers: int) -> Iterator[tuple[str, dict[str, str]]]:
    """A head without CPUs whose autoscaler starts up to `workers` nodes of two CPUs; address and variables."""
    token, session = folder / "token", Path(tempfile.mkdtemp(prefix="fss-ray-"))
    token.write_text("0123456789abcdef" * 4)
    address, dashboard = f"127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}"
    provider = {"type": "external", "module": "tests.sweeps.fake_provider.MachineProvider",
                "disable_launch_config_check": True, "disable_node_updaters": True,
                "gcs_address": address, "head_node_id": HEAD, "launch_multiple": True}
    machine = {"CPU": 2, "memory": 2_600_000_000, "object_store_memory": 80_000_000}
    types: dict[str, Any] = {"ray.head.default": {"resources": {}, "node_config": {}, "max_workers": 0},
                             "worker": {"resources": machine, "node_config": {}, "max_workers": workers}}
    (folder / "autoscaler.json").write_text(json.dumps({
        "cluster_name": "fss-test", "max_workers": workers, "provider": provider, "available_node_types": types,
        "head_node_type": "ray.head.default", "idle_timeout_minutes": 0.1, "upscaling_speed": 1.0, **EMPTY}))
    env = node_environment(token, {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1",
                                   "PYTHONPATH": str(Path(__file__).parents[2])})
    head = start_head(folder, address, dashboard, session, cpus=0, env={**env, **VERSIONS[version]},
                      flags=[f"--autoscaling-config={folder / 'autoscaler.json'}"])
    try:
        wait_for_nodes(dashboard, token.read_text(), 1, head, folder, wait_s=180)
        yield address, env
    finally:
        nodes = [p for p in psutil.process_iter() if _is_of(p, session)]
        head.stop()
        for process in nodes:  # nodes that the provider started are in no session of the head's
            if process.is_running():
                process.kill()


def _is_of(process: psutil.Process, session: Path) -> bool:
    try:
        return any(session.name in word for word in process.cmdline())
    except psutil.Error:
        return False


def recipe_file(config: DataConfig, folder: Path, **sweep: Any) -> Path:
    recipe = Recipe(
        name="scaled", out=str(folder / "out"), data=config, methods=[MethodConfig(name="sansa", preset="debug")],
        train=TrainConfig(steps=4, batch=2, checkpoint_every=2, log_every=2, pool_bytes=64_000_000),
        eval=EvalConfig(episodes=10), sweep=SweepConfig(**{"folds": [0, 1, 2], **sweep}))
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    return path


def run(address: str, env: dict[str, str], file: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", SWEEP, address, str(file)], text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, env={**os.environ, **env})


@pytest.mark.timeout(900)
@pytest.mark.parametrize("version", VERSIONS)
def test_machines_come_for_a_sweep_and_are_not_asked_for_afterwards(version: str, shapes_config: DataConfig,
                                                                    tmp_path: Path) -> None:
    """Would catch a sweep that waits for ever on a head without CPUs, and one whose request outlives it."""
    with autoscaling_head(tmp_path, version, workers=1) as (address, env):
        out, log = run(address, env, recipe_file(shapes_config, tmp_path)).communicate(timeout=600)
        assert out.strip(), log[-3000:]
        found = json.loads(out.strip().splitlines()[-1])
        assert found.pop("asked") >= 3, "all runs were asked for"
        assert found == {"errors": ["", "", ""], "machines": 1, "after": 0}, log[-3000:]


@pytest.mark.timeout(900)
def test_a_run_that_no_machine_has_room_for_waits_for_one_until_it_is_cancelled(shapes_config: DataConfig,
                                                                               tmp_path: Path) -> None:
    """Would catch a refusal before the autoscaler was asked, and a request that a cancelled sweep leaves behind."""
    with autoscaling_head(tmp_path, "v1", workers=1) as (address, env):
        process = run(address, env, recipe_file(shapes_config, tmp_path, cpus_per_run=4.0))
        state = tmp_path / "out" / "sweep" / "state.json"
        until(lambda: state.exists() and json.loads(state.read_text())["status"] == "running", "the sweep", 300)
        assert process.poll() is None
        cancel(str(tmp_path / "out"))
        out, log = process.communicate(timeout=300)
        found = json.loads(out.strip().splitlines()[-1])
        assert (process.returncode != 0, found["asked"], found["after"]) == (True, 3, 0), log[-3000:]
