"""A deployment of the job's own, with a replica that is killed under it."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from pipelines.labelling.engines import local_engine
from pipelines.serving.labeler import Failure, Labeler
from pipelines.serving.spec import ModelSpec
from pipelines.serving.support_files import read_support_file
from tests.labelling.helpers import make_job
from tests.serving.helpers import photo_folder, supports_file


def _replicas() -> list[int]:
    """Process ids of the replicas below this process, in no other cluster."""
    below = psutil.Process().children(recursive=True)
    return [p.pid for p in below if p.is_running() and "ServeReplica" in " ".join(p.cmdline())]


@pytest.mark.slow
def test_a_killed_replica_costs_its_chunks_only(ray_cluster: object, bundle: str, tmp_path: Path) -> None:
    """Would catch a job that dies with a replica, or that loses or repeats the chunks it had."""
    photos = photo_folder(tmp_path / "photos", 200)
    supports = read_support_file(str(supports_file(tmp_path)))
    root = str(tmp_path / "supports")
    supports.save(root)
    job = make_job(photos, tmp_path / "out", supports.support_id, Labeler(bundle), chunk=8)
    with local_engine(ModelSpec(bundle_url=bundle, supports_url=root, batch=4, threads=1)) as engine:
        work = threading.Thread(target=job.run, args=(engine, job.left(), 2))
        work.start()
        end = time.monotonic() + 60
        while len(job.left()) > 22:
            assert time.monotonic() < end
            time.sleep(0.02)
        (first,) = _replicas()
        os.kill(first, signal.SIGKILL)
        work.join(200)
        assert not work.is_alive()
        assert _replicas() != [first]
    assert job.left() == []
    rows = [r for c in range(25) for r in job.out.read_table(f"parts/chunk-{c:06d}.parquet").to_pylist()]
    assert [r["image_id"] for r in rows] == list(range(1, 201))
    assert not any(isinstance(r["error"], Failure) or r["error"] for r in rows)
