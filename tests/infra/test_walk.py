"""From a bucket to labels on three nodes with `fss submit` only, while machines are lost and added. Slow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.datasets import write_coco
from infra.local.processes import free_port
from infra.local.topology import LocalCluster
from jobs.demo_inputs import choose_class, write_supports
from pipelines.base.storage import Store, join
from pipelines.base.workspace import Workspace
from pipelines.data.shardset import Shards
from tests.infra.nodes import another_machine, fss, running_nodes, submitted, until

pytestmark = pytest.mark.slow
PHOTOS = 240
METHODS = "[{name: sansa, preset: debug}, {name: fssam, preset: debug}]"


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with running_nodes(tmp_path_factory.mktemp("walk")) as found:
        yield found


def settings(bucket: str) -> list[str]:
    sets = {"data.name": "photos", "data.source": json.dumps({"format": "coco", "root": f"{bucket}/raw"}),
            "methods": METHODS, "sweep.folds": "[0, 1, 2, 3]", "train.steps": 120, "train.checkpoint_every": 10,
            "train.log_every": 10, "project": "walk", "serve.threads": 1, "label.chunk": 2,
            "calibrate.sets": 0}
    return ["--recipe", "debug", *(word for k, v in sets.items() for word in ("--set", f"{k}={v}"))]


def results(out: str) -> dict[str, Any]:
    """Run -> (bundle id, mIoU, hash of its episode list)."""
    store = Store(join(out, "runs"))
    rows = {name.split("/")[0]: store.read_json(name) for name in store.list(suffix="/result.json")}
    return {run: (r["bundle_id"], r["miou"], r["list_hash"]) for run, r in rows.items()}


def test_from_a_bucket_to_labels_while_machines_come_and_go(local: LocalCluster, tmp_path: Path) -> None:
    """Would catch anything that exists on one machine only: a path, a process, a half-written part."""
    bucket, given = local.bucket, settings(local.bucket)
    write_coco(tmp_path / "raw", PHOTOS, per_photo=3, size=(64, 64), classes=12)
    Store(bucket).fs.put(str(tmp_path / "raw"), f"{bucket.removeprefix('s3://')}/raw", recursive=True)
    out = f"{bucket}/walk"
    submitted("shards", "shards", "build", *given, "--out", out, cwd=tmp_path)
    _sweep(local, out, given, tmp_path)
    submitted("promote", "promote", *given, "--out", out, cwd=tmp_path)
    _label(local, out, given, tmp_path)


def _sweep(local: LocalCluster, out: str, given: list[str], cwd: Path) -> None:
    """Sweep two methods on four folds, lose a machine after a checkpoint; the results equal an undisturbed sweep's."""
    fss("submit", "--id", "sweep", "--no-follow", "--working-dir", "", "sweep", "run", *given, "--out", out, cwd=cwd)
    until(lambda: any("checkpoint_0" in n for n in Store(join(out, "runs")).list()), "a checkpoint")
    another_machine(local, "worker-1")
    ended = fss("jobs", "logs", "sweep", "--follow", cwd=cwd)
    assert ended.returncode == 0, ended.stdout[-3000:]
    quiet = fss("sweep", "run", *given, "--out", str(cwd / "quiet"), cwd=cwd,
                env={"MLFLOW_TRACKING_URI": "", "RAY_API_SERVER_ADDRESS": ""})
    assert quiet.returncode == 0, quiet.stderr[-2000:]
    assert len(results(out)) == 8
    assert results(out) == results(str(cwd / "quiet"))


def _label(local: LocalCluster, out: str, given: list[str], cwd: Path) -> None:
    """Label through the service, and with actors of which one loses its machine; the parts are the same."""
    shards = Shards(Workspace(out).shards("photos"))
    supports = write_supports(shards, choose_class(shards), f"{local.bucket}/supports")
    port = free_port()
    fss("submit", "--id", "serve", "--no-follow", "--working-dir", "", "serve", *given, "--out", out, "--port",
        str(port), cwd=cwd)
    until(lambda: _healthy(port), "the service")
    what = ["label", *given, "--images", f"{local.bucket}/raw/images", "--supports", supports, "--workspace", out]
    submitted("label", *what, "--out", f"{out}/labels/served", "--service", f"http://127.0.0.1:{port}",
              "--set", "label.batch=8", cwd=cwd)
    assert fss("jobs", "stop", "serve", cwd=cwd).stdout.strip() == "STOPPED"
    lost = f"{out}/labels/lost"
    fss("submit", "--id", "actors", "--no-follow", "--working-dir", "", *what, "--engine", "actors", "--out", lost,
        cwd=cwd)
    until(lambda: len(Store(lost).list("parts")) > 4, "a few parts")
    another_machine(local, "worker-2")
    ended = fss("jobs", "logs", "actors", "--follow", cwd=cwd)
    assert ended.returncode == 0, ended.stdout[-3000:]
    served, again = Store(f"{out}/labels/served"), Store(lost)
    assert len(served.list("parts")) == PHOTOS // 2
    assert served.list("parts") == again.list("parts")
    for part in served.list("parts"):
        assert served.read_bytes(part) == again.read_bytes(part), part
    assert {i["id"] for i in again.read_json("labels.json")["images"]} == set(range(1, PHOTOS + 1))


def _healthy(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/v1/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False
