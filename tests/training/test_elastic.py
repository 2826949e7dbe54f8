"""A run goes on with two of three machines when one of them is lost, and with a third that joins. Slow: real nodes."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fss_models import registry
from pipelines.bundles.bundle import load_bundle
from pipelines.config.run import RunSpec
from pipelines.training.context import RunContext
from tests.fixtures.training import Outcome
from tests.training.test_exact import still

pytestmark = pytest.mark.slow

STEPS, BATCH = 40, 6  # a batch that two and three workers can share
CHANGES = """
import json, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from pipelines.base.cluster import prepare_environment
prepare_environment()
import ray
from ray._private.state import actors
from ray.cluster_utils import Cluster
from pipelines.config.run import RunSpec
from pipelines.training.context import RunContext
from pipelines.training.worker import open_run, train_run

MACHINE = {"num_cpus": 1, "memory": 2_000_000_000, "object_store_memory": 80_000_000}

class Slow:
    '''Opens a run whose steps take a while, so that machines can change between them, and writes who made them.'''
    def __init__(self, folder, seconds):
        self.folder, self.seconds = folder, seconds

    def __call__(self, run, worker):
        from dataclasses import replace
        task = open_run(run, worker)
        def step(number, model):
            time.sleep(self.seconds)
            with open(f"{self.folder}/steps-{worker.rank}", "a") as lines:
                lines.write(f"{number} {worker.world} {ray.get_runtime_context().get_node_id()}\\n")
            return {}
        return replace(task, on_step=step)

def made(folder):
    file = Path(folder, "steps-0")
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []

def change(nodes, machines, folder, told, training):
    own = lambda world: [int(n) for n, w, _ in made(folder) if int(w) == world]
    while len(own(3)) < 8 and not training.done():
        time.sleep(0.1)
    rows = actors().values()
    leading = {a["Address"]["NodeID"] for a in rows if a["ActorClassName"] == "TrainController"}
    lost = next(m for m in machines if m.node_id not in leading)
    machines.remove(lost)
    nodes.remove_node(lost, allow_graceful=False)
    told["lost_at"] = max(own(3))
    while len(own(2)) < 4 and not training.done():
        time.sleep(0.1)
    nodes.add_node(**MACHINE)
    told["joined_at"] = max(own(2))

def main():
    spec, folder = RunSpec.model_validate_json(Path(sys.argv[1]).read_text()), sys.argv[2]
    nodes = Cluster(initialize_head=True, head_node_args={**MACHINE, "num_cpus": 0, "memory": 8_000_000_000})
    machines = [nodes.add_node(**MACHINE) for _ in range(3)]
    ray.init(address=nodes.address, logging_level="ERROR", log_to_driver=False)
    told, run = {}, RunContext(spec=spec, runs=f"{folder}/runs", cpus=spec.train.workers, retries=5)
    with ThreadPoolExecutor() as pool:  # machines are added in the main thread: Ray sets signal handlers
        training = pool.submit(train_run, run, Slow(folder, 3.0))
        change(nodes, machines, folder, told, training)
        training.result()
    print(json.dumps({**told, "steps": made(folder)}))
    ray.shutdown()
    nodes.shutdown()

main()
"""


def train(spec: RunSpec, folder: Path) -> dict[str, Any]:
    """What happened in the run on the three machines."""
    folder.mkdir()
    file = folder / "spec.json"
    file.write_text(spec.model_dump_json())
    done = subprocess.run([sys.executable, "-c", CHANGES, str(file), str(folder)], capture_output=True, text=True,
                          check=False, timeout=800)
    assert done.returncode == 0, done.stderr[-3000:]
    told: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return told


@pytest.mark.timeout(1000)
def test_a_machine_is_lost_and_another_joins(spec: RunSpec, run_loop: Callable[..., Outcome], tmp_path: Path) -> None:
    """Fails if the run ends with the machine, leaves a step out, makes one with some of its clips, or goes on with two.

    Ray Train looks for more machines once a minute: the steps are slow enough for that.
    """
    alone = still(spec, "sansa")
    alone = alone.model_copy(update={"train": alone.train.model_copy(update={
        "steps": STEPS, "batch": BATCH, "checkpoint_every": 4, "log_every": 20})})
    shared = alone.model_copy(update={"train": alone.train.model_copy(update={"workers": 3, "min_workers": 2})})
    want, _ = run_loop(alone, "alone")
    told = train(shared, tmp_path / "shared")
    found = load_bundle(RunContext(spec=shared, runs=f"{tmp_path}/shared/runs").bundle)[0].trainable_state()
    made = [(int(n), int(world)) for n, world, _ in told["steps"]]
    worlds = [world for world, _ in itertools.groupby(w for _, w in made)]
    assert worlds == [3, 2, 3]
    assert made[-1][0] == STEPS
    assert {n for n, _ in made} == set(range(1, STEPS + 1))
    again = len(made) - STEPS
    assert again < 4 * 4, "steps since the last checkpoints are made again, no more"
    start = registry.build("sansa", "debug", alone.method.config, seed=alone.seed).trainable_state()
    moved = sum(float((tensor - start[name]).abs().sum()) for name, tensor in want.items())
    off = sum(float((tensor - found[name]).abs().sum()) for name, tensor in want.items())
    assert off < 0.1 * moved, "as far from the undisturbed run as four of its steps"
    print(f"lost at step {told['lost_at']}, joined at {told['joined_at']}, {again} steps made again, "
          f"weights {off / moved:.4f} of the way off")
