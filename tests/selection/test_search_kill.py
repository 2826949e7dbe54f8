"""A search that is killed twice ends with the trials and values of one left alone: slow, on real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipelines.config.recipe import Recipe

pytestmark = pytest.mark.slow
FSS = str(Path(sys.executable).parent / "fss")


def test_a_search_killed_twice_is_as_one_left_alone(shapes_shards: str, tmp_path: Path) -> None:
    """SIGKILL after two scores of the first bracket, and between two checkpoints at the last rung of it."""
    quiet, out = _command(tmp_path / "quiet", shapes_shards), tmp_path / "killed" / "out"
    alone = _finish(quiet)
    killed = _command(tmp_path / "killed", shapes_shards)
    _kill(killed, lambda: len(list(out.glob("search/scores/*/step-*.json"))) >= 2)
    assert not (out / "search" / "killed.json").exists()
    # the first rung has 4 steps: a checkpoint of 6 is of the second
    _kill(killed, lambda: any("checkpoint_0000006" in p.read_text()
                              for p in out.glob("search/runs/*/*/checkpoint_manager_snapshot.json")))
    assert not (out / "search" / "killed.json").exists()
    assert _finish(killed) == alone


def _command(folder: Path, shards: str) -> list[str]:
    """`fss search` of four trials in two brackets for each of two methods, on two folds."""
    out = folder / "out"
    (out / "shards").mkdir(parents=True)
    (out / "shards" / "shapes").symlink_to(shards)
    recipe = Recipe.model_validate({
        "name": "killed", "out": str(out), "data": json.loads((Path(shards) / "manifest.json").read_text())["source"],
        "methods": [{"name": "sansa", "preset": "debug"}, {"name": "fcp", "preset": "debug"}],
        "sweep": {"folds": [0, 1], "parallel": 2},
        "train": {"steps": 12, "batch": 2, "checkpoint_every": 2, "log_every": 2, "pool_bytes": 64_000_000,
                  "selection": "base-holdout", "select": {"classes": 1, "episodes": 6}},
        "search": {"space": {"train.lr": {"log": [0.0001, 0.01]}}, "trials": 4, "rungs": 2, "eta": 3}})
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    return [FSS, "search", "--recipe", str(file), "--json"]


def _environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}


def _kill(command: list[str], reached: Callable[[], bool]) -> None:
    process = subprocess.Popen(command, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 400
    while not reached():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    time.sleep(5)  # the orphaned cluster notices and ends


def _finish(command: list[str]) -> list[object]:
    """The search's trials, without what depends on time: settings, scores, how they ended, importance."""
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr[-2000:]
    methods = json.loads(done.stdout)["methods"]
    assert len({sum(t["steps"] for t in m["trials"]) for m in methods}) == 1, "equal budgets"
    trials = {m["label"]: [{k: v for k, v in t.items() if k not in ("seconds", "train_s")} for t in m["trials"]]
              for m in methods}
    assert {label: len(found) for label, found in trials.items()} == {"sansa": 4, "fcp": 4}
    return [trials, [m["importance"] for m in methods]]
