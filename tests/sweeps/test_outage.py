"""A store that refuses all writes for a minute costs a sweep nothing but time. Slow: real S3, real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra.local.s3 import S3Server
from pipelines.base.storage import Store
from tests.data.faulty_s3 import faulty_proxy

pytestmark = pytest.mark.slow
FSS = str(Path(sys.executable).parent / "fss")
AWAY_S = 60.0


def command(out: str) -> list[str]:
    """One run whose checkpoints come often."""
    sets = ["sweep.folds=[0]", "methods=[{name: sansa, preset: debug}]", "train.steps=60", "train.checkpoint_every=5"]
    return [FSS, "sweep", "run", "--recipe", "debug", "--out", out, "--json", *(w for s in sets for w in ("--set", s))]


def test_writes_refused_for_a_minute(s3_server: S3Server, tmp_path: Path) -> None:
    """Checkpoints, history, result and leaderboard arrive when the store is back, equal to an undisturbed run's."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"FSS_CACHE": str(tmp_path / "cache")}
    quiet = subprocess.run(command(str(tmp_path / "quiet")), env=env, capture_output=True, text=True, timeout=500)
    assert quiet.returncode == 0, quiet.stderr[-2000:]
    out = f"{s3_server.url}/outage"
    with faulty_proxy(s3_server.env["AWS_ENDPOINT_URL"], every=10**9) as proxy, \
            (tmp_path / "log").open("w") as log:
        through = env | {"AWS_ENDPOINT_URL": proxy.endpoint}
        process = subprocess.Popen(command(out), env=through, stdout=subprocess.PIPE, stderr=log, text=True)
        _wait_for_a_checkpoint(Store(out), process)
        proxy.read_only = True
        time.sleep(AWAY_S)
        assert process.poll() is None, (tmp_path / "log").read_text()[-2000:]
        proxy.read_only = False
        answer, _ = process.communicate(timeout=500)
        assert process.returncode == 0, (tmp_path / "log").read_text()[-2000:]
    assert proxy.failed["refused"] > 0
    assert _deciding(answer) == _deciding(quiet.stdout)


def _wait_for_a_checkpoint(store: Store, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not (store.exists("runs") and any("checkpoint_0" in name for name in store.list("runs"))):
        assert process.poll() is None, "it ended before a checkpoint was written"
        assert time.monotonic() < deadline
        time.sleep(0.2)


def _deciding(answer: str) -> list[tuple[str, str, float]]:
    return [(r["run"], r["bundle_id"], r["miou"]) for r in json.loads(answer)["runs"]]
