"""A build killed in the middle, and the whole way in object storage: slow, on real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from infra.local.s3 import S3Server
from pipelines.config.data import DataConfig
from pipelines.config.recipe import Recipe
from pipelines.features.build import features_url
from pipelines.features.folder import FeatureFolder
from pipelines.features.info import describe_features
from tests.features.conftest import MakeRecipe, recipe_at

pytestmark = pytest.mark.slow
FSS = [sys.executable, "-m", "jobs.cli"]


def surroundings(**more: str) -> dict[str, str]:
    """This process's variables, without those of its cluster."""
    return {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | more


def command(recipe: Recipe, folder: Path, *words: str) -> list[str]:
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    return [*FSS, *words, "--recipe", str(file), "--json"]


def answer(words: list[str], **env: str) -> dict[str, object]:
    done = subprocess.run(words, env=surroundings(**env), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    document: dict[str, object] = json.loads(done.stdout)
    return document


def test_a_killed_build_goes_on(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """`kill -9` after the third part: the same command writes the rest, and the parts are those of a quiet build."""
    recipe = make_recipe("fcp")
    tiny = recipe.features.model_copy(update={"part_bytes": 1, "url": str(tmp_path / "killed")})
    words = command(recipe.model_copy(update={"features": tiny}), tmp_path, "features", "build")
    process = subprocess.Popen(words, env=surroundings(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    before = _first_parts(tmp_path / "killed", process)
    process.kill()
    process.wait(timeout=30)
    time.sleep(5)  # the orphaned cluster notices and ends
    assert not list((tmp_path / "killed").glob("*/about.json")), "it finished before it was killed"

    (facts,) = answer(words)["folders"]  # type: ignore[misc]
    assert 0 < facts["written"] <= facts["records"] - 2 * len(before)
    folder = Path(facts["features"])
    assert all(p.stat().st_mtime_ns == at for p, at in before.items()), "finished parts were written again"
    quiet = recipe.model_copy(update={"features": tiny.model_copy(update={"url": str(tmp_path / "quiet")})})
    (other,) = answer(command(quiet, tmp_path, "features", "build"))["folders"]  # type: ignore[misc]
    held = [FeatureFolder.open(str(Path(f["features"]).parent), folder.name).locations for f in (facts, other)]
    assert held[0] == held[1]
    assert len(held[0]) == facts["records"]


def test_a_lost_worker_is_made_up_for(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """`kill -9` of the actor that encodes: the same command goes on with what is missing, once."""
    recipe = make_recipe("fcp")
    tiny = recipe.features.model_copy(update={"part_bytes": 1})
    words = command(recipe.model_copy(update={"features": tiny}), tmp_path, "features", "build")
    process = subprocess.Popen(words, env=surroundings(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    _first_parts(Path(features_url(recipe)), process)
    workers = [p for p in psutil.Process(process.pid).children(recursive=True) if "MapWorker" in p.name()]
    assert len(workers) == 1
    workers[0].kill()
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-2000:]
    assert "a worker was lost" in err
    (facts,) = json.loads(out)["folders"]
    (kept,) = describe_features(features_url(recipe), verify=True)
    assert kept["records"] == facts["records"]


def _first_parts(base: Path, process: subprocess.Popen[Any]) -> dict[Path, int]:
    """The first three finished parts and when they were written."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert process.poll() is None, "it ended before a part was written"
        names = [p.stem for p in base.glob("*/index/*.parquet")]
        if len(names) >= 3:
            return {p: p.stat().st_mtime_ns for p in base.glob("*/parts/*.bin") if p.stem in names}
        time.sleep(0.02)
    raise AssertionError("no parts in four minutes")


def test_training_builds_what_is_missing_in_object_storage(
    shapes_config: DataConfig, s3_server: S3Server, tmp_path: Path
) -> None:
    """`fss train` with nothing but a recipe; then `info --verify`, and a limit that ends with one line, status 2."""
    recipe = recipe_at(f"{s3_server.url}/trained", shapes_config, "fcp")
    env = {"FSS_CACHE": str(tmp_path / "cache")}
    result = answer(command(recipe, tmp_path, "train", "--method", "fcp"), **env)
    assert result["error"] == ""
    (facts,) = answer(command(recipe, tmp_path, "features", "info", "--verify"), **env)["folders"]  # type: ignore[misc]
    assert facts["features"].startswith(f"{s3_server.url}/trained/features/")
    assert facts["records"] == 2 * facts["photos"] > 0
    assert facts["verified_parts"] == facts["parts"]
    again = answer(command(recipe, tmp_path, "features", "build"), **env)["folders"][0]  # type: ignore[index]
    assert again["written"] == 0
    limited = command(recipe, tmp_path, "features", "build", "--set", "features.max_bytes=1000")
    done = subprocess.run(limited, env=surroundings(**env), capture_output=True, text=True, timeout=500)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "over features.max_bytes=1000" in done.stderr.splitlines()[-1]
