"""The model and the import for FiftyOne, run by the real FiftyOne with a MongoDB server of its own."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.local.processes import free_port
from pipelines.base.storage import Store
from pipelines.integrations.photo_labeler import PhotoLabeler
from pipelines.labelling.decisions import Decision, add_decisions
from pipelines.labelling.job import LabellingJob
from tests.fixtures.environments import FIFTYONE, run_tool, tool_environment
from tests.integrations.scenes import CLASSES, photo_folder, supports_folder
from tests.labelling.finished import Masks, finished_job, known_masks
from tests.labelling.test_instances import job, photos, rows_of  # noqa: F401
from tests.serving.helpers import wait_for

pytestmark = pytest.mark.slow
REJECTED = ("1.jpg", 1, "fork")  # name and id of a photo of `finished_job`, and a class that it shows


def is_open(port: int) -> bool:
    """Whether a server listens there."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def running_mongod(python: Path, folder: Path) -> Iterator[str]:
    """The URI of a MongoDB server. FiftyOne would start it too, but waits no more than a minute for it."""
    (binary,) = python.parents[1].glob("lib/python*/site-packages/fiftyone/db/bin/mongod")
    folder.mkdir()
    port = free_port()
    server = subprocess.Popen([binary, "--dbpath", folder, "--port", str(port), "--bind_ip", "127.0.0.1",
                               "--nounixsocket", "--logpath", folder / "log"])
    try:
        wait_for(lambda: server.poll() is not None or is_open(port))
        yield f"mongodb://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=60)


@pytest.fixture
def run(tmp_path: Path, bundle: str, job: LabellingJob, photos: Path) -> dict[str, Any]:  # noqa: F811
    """What `fiftyone_run.py` printed; it is run once, for all of the test."""
    python = tool_environment("consumers-fiftyone", FIFTYONE)
    photo_folder(tmp_path / "scenes", 3)
    plain = finished_job(tmp_path / "job_of_two", known_masks())
    name, image_id, label = REJECTED
    add_decisions(Store(str(plain)), [
        Decision(image_id=image_id, image=name, class_name=label, decision="reject")])
    with running_mongod(python, tmp_path / "db") as uri:
        printed = run_tool(python, "-m", "tests.integrations.fiftyone_run", tmp_path / "scenes",
                           supports_folder(tmp_path / "supports"), bundle, plain, job.out.url, photos,
                           FIFTYONE_DATABASE_URI=uri, FIFTYONE_DO_NOT_TRACK="true", HOME=str(tmp_path))
    found: dict[str, Any] = json.loads(next(line for line in printed.splitlines() if line.startswith('{"applied"')))
    return found


def test_models_and_imports_give_fss_labels(run: dict[str, Any], job: LabellingJob, tmp_path: Path,  # noqa: F811
                                            bundle: str) -> None:
    check_applied(run["applied"], tmp_path, bundle)
    found = run["imported"]
    assert found["counts"] == [8, 6]
    assert found["before"] == found["after"] == 7, "the photos of the dataset were found by their paths"
    assert {"found.uncertainty", "found.detections"} <= set(found["declared"])
    assert "one class at most" in found["refused"]
    assert found["targets"] == {"1": "ball"}
    assert found["maps"] == {row["file_name"]: row["area"] for row in rows_of(job)}
    check_plain(found["plain"], known_masks())
    for row in rows_of(job):
        wanted = [[one["area"], pytest.approx(one["score"]), pytest.approx(one["bbox"][:2])]
                  for one in row["instances"]]
        assert found["split"][row["file_name"]].get("ball", []) == wanted


def check_applied(found: dict[str, Any], folder: Path, bundle: str) -> None:
    """Detections are the instances and segmentations the masks of the same labels; a missing file has none."""
    data = [p.read_bytes() for p in sorted((folder / "scenes").iterdir())]
    supports = str(folder / "supports")
    labels = PhotoLabeler(supports, bundle=bundle, device="cpu", instances="pieces").label(data)
    assert found["left"] == 1
    assert found["of_array"] == "Detections"
    assert found["above"] == 0, "the dataset can be filtered by confidence"
    assert found["targets"] == {"1": "ball", "2": "brick"}
    for masks, photo in zip(found["masks"], labels, strict=True):
        for name, label in zip(CLASSES, photo, strict=True):
            wanted = sorted(one.area for one in label.instances or ())
            assert sorted(area for area, _, _ in masks.get(name, [])) == pytest.approx(wanted, abs=5)
    resolved = PhotoLabeler(supports, bundle=bundle, device="cpu", exclusive=True).label(data)
    for counts, photo in zip(found["maps"], resolved, strict=True):
        assert counts[1:] == pytest.approx([label.area for label in photo if label.area], abs=5)
    least = [1 - min(label.score for label in photo) for photo in labels]
    assert found["uncertainty"] == pytest.approx(sorted(least, reverse=True), abs=1e-3), "without a calibrator: scores"


def check_plain(found: dict[str, Any], truth: Masks) -> None:
    """Each mask of a job without instances is a detection, but not the rejected one."""
    for name, masks in truth.items():
        kept = {c: m for c, m in masks.items() if m.any() and (name, c) != (REJECTED[0], REJECTED[2])}
        own = found[name.rsplit("/", 1)[-1]]
        assert {label: area for label, ((area, _, _),) in own.items()} == {c: int(m.sum()) for c, m in kept.items()}
        for label, ((_, _, corner),) in own.items():
            rows, columns = np.nonzero(kept[label])
            assert corner == pytest.approx([columns.min(), rows.min()], abs=1e-6)


def test_the_example_finds_the_discs_it_drew(tmp_path: Path) -> None:
    python = tool_environment("consumers-fiftyone", FIFTYONE)
    with running_mongod(python, tmp_path / "db") as uri:
        printed = run_tool(python, "examples/fiftyone_labels.py", tmp_path / "discs", FIFTYONE_DATABASE_URI=uri,
                           FIFTYONE_DO_NOT_TRACK="true", FSS_SHIPPED="", HOME=str(tmp_path))
    lines = [line for line in printed.splitlines() if ".jpg  uncertainty" in line]
    found = {line[0]: line.count("accepted") + line.count("review") for line in lines}
    assert found == {"0": 1, "1": 2, "2": 3, "3": 0, "4": 2, "5": 0}
