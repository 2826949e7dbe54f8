"""A job of the running service tells its client's URL, after the service says the same."""

from __future__ import annotations

from pathlib import Path

import httpx

from pipelines.base.webhook import signature
from pipelines.inference.support_files import read_support_file
from pipelines.serving.client import Client
from tests.fixtures.receiver import Receiver
from tests.fixtures.service import WEBHOOK_SECRET
from tests.serving.helpers import Running, photo_folder, supports_file, wait_for


def test_a_job_of_the_service(service: Running, receiver: Receiver, tmp_path: Path) -> None:
    support = Client(service.url).add_support(read_support_file(str(supports_file(tmp_path))))
    asked = {"images": str(photo_folder(tmp_path / "photos", 5)), "support_ids": [support], "notify": receiver.url}
    job = httpx.post(f"{service.url}/v1/jobs", json=asked, timeout=60).json()
    assert "notify" not in job
    assert receiver.url not in job["command"], "it may hold a secret"
    wait_for(lambda: bool(receiver.got), 60)
    assert httpx.get(f"{service.url}/v1/jobs/{job['job_id']}").json()["state"] == "done"
    (sent,) = receiver.got
    assert sent.event["data"] == {"job": job["job_id"], "state": "done", "out": job["out"], "classes": ["ball"],
                                  "images": 5, "with_object": 5, "without_object": 0, "failed": 0,
                                  "labels": f"{job['out']}/labels.json"}
    assert sent.headers["webhook-signature"] == signature(
        WEBHOOK_SECRET.encode(), sent.event["id"], int(sent.headers["webhook-timestamp"]), sent.body)


def test_what_is_no_url_is_refused(service: Running) -> None:
    asked = {"images": "/nowhere", "support_ids": ["0" * 16], "notify": "file:///etc/passwd"}
    answer = httpx.post(f"{service.url}/v1/jobs", json=asked, timeout=60)
    assert answer.status_code == 422
    assert "notify is no http:// or https:// URL" in answer.text
