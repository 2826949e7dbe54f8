"""A job outlives the service: its labels stay, and the next service, or `fss label`, labels the remaining photos.

Would catch progress that only lives in memory, and a job that for ever claims to run.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import httpx
import pytest

from pipelines.inference.support_files import read_support_file
from pipelines.serving.client import Client
from tests.serving.helpers import photo_folder, running_service, supports_file, wait_for

PHOTOS = 160


@pytest.mark.slow
def test_a_stopped_service_leaves_a_job_that_goes_on(bundle: str, tmp_path: Path) -> None:
    photos, place = photo_folder(tmp_path / "photos", PHOTOS), tmp_path / "ws"
    settings = ("--set", "serve.threads=1", "--set", "label.chunk=4", "--set", "label.in_flight=1")
    with running_service(bundle, place, *settings) as first:
        support = Client(first.url).add_support(read_support_file(str(supports_file(tmp_path))))
        asked = {"images": str(photos), "support_ids": [support]}
        job = httpx.post(f"{first.url}/v1/jobs", json=asked, timeout=60).json()
        assert job["photos"] == PHOTOS
        wait_for(lambda: len(list((Path(job["out"]) / "parts").glob("chunk-*"))) >= 2)
    parts = {p.name: p.read_bytes() for p in (Path(job["out"]) / "parts").glob("chunk-*")}
    assert 2 <= len(parts) < PHOTOS / 4
    with running_service(bundle, place, *settings) as second:
        where = f"{second.url}/v1/jobs/{job['job_id']}"
        wait_for(lambda: httpx.get(where).json()["state"] != "running")
        assert httpx.get(where).json()["state"] in ("interrupted", "failed")
        began = time.monotonic()
        assert httpx.post(f"{where}/resume", json={}, timeout=60).json()["state"] == "running"
        wait_for(lambda: httpx.get(where).json()["state"] == "done")
        print(f"done {time.monotonic() - began:.1f} s after it went on")
    images = json.loads((Path(job["out"]) / "labels.json").read_text())["images"]
    assert [i["id"] for i in images] == list(range(1, PHOTOS + 1))
    assert all((Path(job["out"]) / "parts" / name).read_bytes() == data for name, data in parts.items())
