"""Where the drivers of runs are on a cluster of several machines. Slow: real Ray nodes, in a process of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

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
    cpus = 1 if sys.argv[2:] == ["spread"] else 2
    workers = [nodes.add_node(num_cpus=cpus, memory=1_300_000_000, **store) for _ in range(2)]
    ray.init(address=nodes.address, logging_level="ERROR", log_to_driver=False)
    head = next(n["NodeID"] for n in ray.nodes() if not n["Resources"].get("CPU"))
    found, over = {}, threading.Event()

    def watch():
        while not over.wait(0.2):
            rows = [a for a in actors().values() if a["ActorClassName"] == "TrainController"]
            found.update({a["ActorID"]: a["Address"]["NodeID"] for a in rows if a["Address"]["NodeID"]})
            alive.append(sum(a["State"] == "ALIVE" for a in rows))
            there = {a["Address"]["NodeID"] for a in rows if a["State"] == "ALIVE"}
            busy = [w for w in workers if w.node_id in there] if sys.argv[2:] == ["lose"] and len(workers) == 2 else []
            for worker in busy[:1]:  # with the driver, the controller and perhaps a worker of a run
                nodes.remove_node(worker, allow_graceful=False)
                workers.remove(worker)

    alive = []
    thread = threading.Thread(target=watch)
    thread.start()
    results = run_sweep(Recipe.model_validate(yaml.safe_load(Path(sys.argv[1]).read_text())))
    over.set()
    thread.join()
    print(json.dumps({"errors": [r.error for r in results], "on_head": sum(n == head for n in found.values()),
                      "controllers": len(found), "most": max(alive), "machines": len(workers)}))
    ray.shutdown()
    nodes.shutdown()

main()
"""


def run(config: DataConfig, folder: Path, *words: str, workers: int = 1, folds: int = 3) -> dict[str, Any]:
    """What the script found: two machines with CPUs for four runs and memory for two drivers, and three runs."""
    recipe = Recipe(
        name="placed", out=str(folder / "out"), data=config, methods=[MethodConfig(name="sansa", preset="debug")],
        train=TrainConfig(steps=4, batch=2, checkpoint_every=2, log_every=2, pool_bytes=64_000_000, workers=workers),
        eval=EvalConfig(episodes=10), sweep=SweepConfig(folds=list(range(folds)), cpus_per_run=workers))
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    done = subprocess.run([sys.executable, "-c", SWEEP, str(file), *words], capture_output=True, text=True, check=False,
                          timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


@pytest.mark.timeout(1000)
def test_drivers_and_controllers_are_not_on_a_head_without_cpus(shapes_config: DataConfig, tmp_path: Path) -> None:
    """Would catch drivers that Ray packs on the head because they take no CPU, and more of them than memory."""
    found = run(shapes_config, tmp_path)
    assert found["errors"] == ["", "", ""]
    assert found["controllers"] >= 3
    assert found["on_head"] == 0
    assert found["most"] <= 2, "memory for two drivers, CPUs for four"


@pytest.mark.timeout(1000)
def test_a_run_whose_driver_is_lost_with_its_machine_is_tried_again(shapes_config: DataConfig, tmp_path: Path) -> None:
    found = run(shapes_config, tmp_path, "lose")
    assert found["machines"] == 1, "one of two was lost"
    assert found["errors"] == ["", "", ""]


@pytest.mark.timeout(300)
def test_a_run_that_no_machine_has_room_for_alone_is_scored(shapes_config: DataConfig, tmp_path: Path) -> None:
    """It is trained on two machines of one CPU each. Its scoring waited for ever for one machine with two."""
    assert run(shapes_config, tmp_path, "spread", workers=2, folds=1)["errors"] == [""]
