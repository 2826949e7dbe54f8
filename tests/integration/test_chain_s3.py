"""The whole chain with shards, checkpoints, images and labels on a real S3 server.

Catches what no single stage's test can: a stage that writes locally what the next one looks for in the bucket, a
Ray worker without the credentials, a listing that is not yet consistent.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from infra.local.s3 import S3Server
from pipelines.base.storage import Store

SETTINGS = [
    "data.source.images=90", "data.source.side=96", "data.images_per_part=30",
    'methods=[{"name": "prior", "preset": "nano"}, {"name": "sansa", "preset": "debug"}]', "sweep.folds=[0]",
    "train.steps=6", "train.batch=2", "train.checkpoint_every=3", "train.log_every=2", "train.pool_bytes=64000000",
    "eval.episodes=8", "label.chunk=8", "label.batch=4",
]


def demo(out: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    sets = [part for s in SETTINGS for part in ("--set", s)]
    return subprocess.run([sys.executable, "-m", "jobs.cli", "demo", "--out", out, "--json", *sets], cwd=cwd,
                          capture_output=True, text=True, check=False, timeout=600, env=dict(os.environ))


Run = tuple[Store, dict[str, Any]]


@pytest.fixture(scope="module")
def chain(_s3_session: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The workspace in the bucket, and the JSON that the command printed."""
    cwd = tmp_path_factory.mktemp("nowhere")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**_s3_session.env, "FSS_CACHE": str(cwd / "cache")}.items():
            patch.setenv(name, value)
        done = demo(f"{_s3_session.url}/chain/out", cwd)
        assert done.returncode == 0, done.stderr[-3000:]
        left = [str(p.relative_to(cwd)) for p in cwd.rglob("*") if p.is_file()]
    assert not [p for p in left if not p.startswith("cache/")], "written outside the output URL and the cache"
    return Store(f"{_s3_session.url}/chain/out"), json.loads(done.stdout)


def test_every_stage_left_its_files_in_the_bucket(s3_server: S3Server, chain: Run) -> None:
    store, printed = chain
    files = store.list()
    for pattern in (r"shards/shapes/manifest\.json", r"shards/shapes/images/part-\d+\.parquet",
                    r"shards/shapes/blocks/train/.*\.parquet", r"runs/shapes-sansa-.*/checkpoint_0000006/.*",
                    r"runs/shapes-sansa-.*/bundle/model\.safetensors", r"runs/shapes-prior-.*/result\.json",
                    r"leaderboard\.json", r"champion/bundle\.json", r"demo_images/.*\.jpg", r"labels/.*/labels\.json",
                    r"labels/.*/parts/chunk-000000\.parquet", r"report\.html", r"recipe\.yaml"):
        assert any(re.fullmatch(pattern, f) for f in files), pattern
    assert printed["report"] == store.path("report.html")
    assert [s["name"] for s in printed["stages"]][1] == "build shards"


def test_every_photo_is_labelled_once(s3_server: S3Server, chain: Run) -> None:
    store, _ = chain
    fs, root = store.pyarrow()
    parts = [f"{root}/{n}" for n in store.list("labels", suffix=".parquet") if "/parts/" in n]
    tables = [pq.read_table(p, filesystem=fs, columns=["file_name"]) for p in parts]
    names = [name for table in tables for name in table["file_name"].to_pylist()]
    photos = [n.removeprefix("demo_images/") for n in store.list("demo_images")]
    assert sorted(names) == sorted(photos)
    assert len(parts) > 1
    labels = store.read_json(next(n for n in store.list("labels", suffix="labels.json")))
    assert len(labels["images"]) == len(photos)


def test_the_page_shows_this_run(s3_server: S3Server, chain: Run) -> None:
    store, _ = chain
    board, page = store.read_json("leaderboard.json"), store.read_bytes("report.html").decode()
    assert board["reason"] in page
    assert page.count("data:image/jpeg") > 10
    assert "draws another episode list" not in page


@pytest.mark.slow
def test_run_again_it_finds_everything_done(s3_server: S3Server, chain: Run, tmp_path: Path) -> None:
    store, first = chain
    kept = re.compile(r"(shards|labels)/.*|.*\.safetensors")
    before = {n: s for n, s in store.sizes().items() if kept.fullmatch(n)}
    done = demo(store.url, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "everything is labelled already" in done.stderr
    assert "runs are already finished" in done.stderr
    assert {n: s for n, s in store.sizes().items() if n in before} == before
    times = {s["name"]: s["seconds"] for s in json.loads(done.stdout)["stages"]}
    assert times["train and compare"] == next(s["seconds"] for s in first["stages"] if s["name"] == "train and compare")
