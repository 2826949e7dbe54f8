"""Where the drivers of runs are on a cluster of several machines. Slow: real Ray nodes, in a process of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipelines.config.data import DataConfig
from pipelines.config.evaluate import EvalConfig
from pipelines.config.method import MethodConfig
from pipelines.config.recipe import Recipe
from pipelines.config.sweep import SweepConfig
from pipelines.config.train import TrainConfig

pytestmark = pytest.mark.slow

SWEEP = """
import json, sys, threading, time
from pathlib import Path
from pipelines.base.cluster import prepare_environment
prepare_environment()
import ray, yaml
from ray._private.state import actors
from ray.cluster_utils import Cluster
from pipelines.config.recipe import Recipe
from pipelines.sweeps.sweep import run_sweep

def main():
    store = {"object_store_memory": 80_000_000}
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "memory": 8_000_000_000, **store})
    for _ in range(2):  # CPUs for four runs, memory for two drivers
        nodes.add_node(num_cpus=2, memory=1_300_000_000, **store)
    ray.init(address=nodes.address, logging_level="ERROR", log_to_driver=False)
    cpus = {n["NodeID"] for n in ray.nodes() if n["Resources"].get("CPU")}
    found, over = {}, threading.Event()

    def watch():
        while not over.wait(0.2):
            rows = [a for a in actors().values() if a["ActorClassName"] == "TrainController"]
            found.update({a["ActorID"]: a["Address"]["NodeID"] for a in rows if a["Address"]["NodeID"]})
            alive.append(sum(a["State"] == "ALIVE" for a in rows))

    alive = []
    thread = threading.Thread(target=watch)
    thread.start()
    results = run_sweep(Recipe.model_validate(yaml.safe_load(Path(sys.argv[1]).read_text())))
    over.set()
    thread.join()
    print(json.dumps({"errors": [r.error for r in results], "on_cpus": [n in cpus for n in found.values()],
                      "most": max(alive)}))
    ray.shutdown()
    nodes.shutdown()

main()
"""


def test_drivers_and_controllers_are_not_on_a_head_without_cpus(shapes_config: DataConfig, tmp_path: Path) -> None:
    """Would catch drivers that Ray packs on the head because they take no CPU, and more of them than memory."""
    recipe = Recipe(
        name="placed", out=str(tmp_path / "out"), data=shapes_config,
        methods=[MethodConfig(name="sansa", preset="debug")],
        train=TrainConfig(steps=4, batch=2, checkpoint_every=2, log_every=2, pool_bytes=64_000_000),
        eval=EvalConfig(episodes=10), sweep=SweepConfig(folds=[0, 1, 2]))
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    done = subprocess.run([sys.executable, "-c", SWEEP, str(file)], capture_output=True, text=True, check=False,
                          timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    assert answer["errors"] == ["", "", ""]
    assert len(answer["on_cpus"]) >= 3
    assert all(answer["on_cpus"])
    assert answer["most"] <= 2, "memory for two drivers, CPUs for four"
