"""`fss label` as a command, with its own cluster and with a running service."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.base.storage import Store
from pipelines.config.mask_request import MaskRequest
from pipelines.inference.labeler import Labeler
from pipelines.inference.masks import PhotoFailure
from pipelines.inference.support_files import read_support_file
from tests.fixtures.command import Fss
from tests.inference.test_classes import class_folder
from tests.serving.helpers import FSS, Running, clean_env, photo_folder, run_fss, supports_file


def _arguments(photos: Path, supports: Path, out: Path, bundle: str, *more: str) -> list[str]:
    return ["label", "--images", str(photos), "--supports", str(supports), "--out", str(out), "--bundle", bundle,
            "--workspace", str(out.parent / "ws"), "--set", "label.chunk=8", "--set", "serve.threads=1", *more]


def _parts(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((out / "parts").glob("chunk-*.parquet"))}


def test_label_again_and_through_the_service(bundle: str, service: Running, fss: Fss, tmp_path: Path) -> None:
    """The command's own deployment, a repeated command and a running service all give the same bytes."""
    photos, supports = photo_folder(tmp_path / "photos", 20), class_folder(tmp_path / "classes")
    (photos / "broken.jpg").write_bytes(b"\xff\xd8")

    def several(name: str) -> list[str]:
        return _arguments(photos, supports, tmp_path / name, bundle, "--json", "--overlaps", "resolve")

    first = run_fss(*several("own"))
    assert first.returncode == 0, first.stderr
    told = json.loads(first.stdout)
    assert (told["labelled_now"], told["failed"], told["class_names"]) == (21, 1, ["ball", "noise"])
    before = _parts(tmp_path / "own")
    again = fss(*several("own"))
    assert json.loads(again.stdout)["labelled_now"] == 0
    assert "everything is labelled already" in again.stderr
    assert _parts(tmp_path / "own") == before

    assert (service.workspace / "serve.json").exists()
    served = fss(*several("served"), "--workspace", str(service.workspace))
    assert served.returncode == 0, served.stderr
    assert f"labelling through the service at {service.url}" in served.stderr
    assert _parts(tmp_path / "served") == before
    one = _arguments(photos, supports_file(tmp_path), tmp_path / "one", bundle, "--json")
    done = fss(*one, "--service", service.url)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["labelled_now"] == 21
    other = fss(*one, "--threshold", "0.7")
    assert other.returncode == 2
    assert "holds another job: its threshold is 0.5, but this job's is 0.7" in other.stderr


def test_annotations_that_are_there(bundle: str, service: Running, fss: Fss, tmp_path: Path) -> None:
    """They are kept, and the same folder does not take them for another use."""
    photos, supports = photo_folder(tmp_path / "photos", 6), supports_file(tmp_path)
    name = sorted(p.relative_to(photos) for p in photos.rglob("*.jpg"))[0]
    corners = [[0, 0, 30, 0, 30, 20, 0, 20]]
    (tmp_path / "there.json").write_text(json.dumps({
        "images": [{"id": 1, "file_name": str(name)}, {"id": 2, "file_name": "gone.jpg"}],
        "annotations": [{"id": n, "image_id": n, "category_id": 3, "segmentation": corners} for n in (1, 2)],
        "categories": [{"id": 3, "name": "ball"}, {"id": 4, "name": "bolt"}]}))
    words = _arguments(photos, supports, tmp_path / "out", bundle, "--service", service.url, "--existing",
                       str(tmp_path / "there.json"))
    done = fss(*words)
    assert done.returncode == 0, done.stderr
    assert ("existing labels (coco, keep): 1 of 6 photos have some; named there but not among --images: 1; classes not "
            "asked for: 1 (bolt); classes unknown there: 0") in done.stderr
    assert "; labels kept as they were: 1" in done.stdout
    rows = pq.read_table(tmp_path / "out" / "parts").to_pylist()
    assert [(r["file_name"], r["area"]) for r in rows if r["origin"] == "existing"] == [(str(name), 600)]
    other = fss(*words, "--existing-mode", "fill")
    assert other.returncode == 2
    assert "its existing_mode is 'keep', but this job's is 'fill'" in other.stderr


@pytest.mark.parametrize(("change", "line"), [
    (("--images", "/nowhere"), "/nowhere: does not exist"),
    (("--supports", "/nowhere.json"), "/nowhere.json: does not exist"),
    (("--bundle", "/nowhere"), "/nowhere: there is no bundle here"),
    (("--service", "http://127.0.0.1:9"), "http://127.0.0.1:9: no service answers"),
    (("--set", "label.chnk=3"), "did you mean 'label.chunk'?"),
    (("--threshold", "2"), "label.threshold"),
    (("--overlaps", "resolve"), "overlaps is resolve, but there is one class"),
    (("--overlaps", "merge"), "label.overlaps"),
    (("--existing", "/nowhere.json"), "/nowhere.json: does not exist"),
    (("--existing-mode", "fill"), "existing_mode needs annotations"),
])
def test_mistakes_are_one_line(bundle: str, tmp_path: Path, change: tuple[str, str], line: str,
                               fss: Fss) -> None:
    photos, supports = photo_folder(tmp_path / "photos", 1), supports_file(tmp_path)
    done = fss(*_arguments(photos, supports, tmp_path / "out", bundle), *change)
    assert done.returncode == 2
    assert line in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_marks_that_the_method_cannot_read(bundle: str, tmp_path: Path, fss: Fss) -> None:
    """Would catch refused marks that leave a claimed folder, in which a job with other marks could not start."""
    photos, supports = photo_folder(tmp_path / "photos", 1), supports_file(tmp_path)
    row = {"image": "ball.png", "box": [1, 1, 50, 50]}
    supports.write_text(json.dumps({"class_name": "ball", "supports": [row]}))
    done = fss(*_arguments(photos, supports, tmp_path / "out", bundle))
    told = "error: class 'ball': supports[0]: method 'prior' reads no box marks (it reads: mask)"
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, told)
    assert not (tmp_path / "out").exists()


def test_instances_through_a_service(bundle: str, service: Running, fss: Fss, tmp_path: Path) -> None:
    """Labels and exports of a job that a service computes hold the instances that this process computes."""
    photos, supports = photo_folder(tmp_path / "photos", 6), supports_file(tmp_path)
    out = tmp_path / "out"
    done = fss(*_arguments(photos, supports, out, bundle, "--service", service.url, "--instances", "pieces",
                           "--format", "parquet"))
    assert done.returncode == 0, done.stderr
    assert "prior reads no names: the marks alone say what to look for" in done.stderr
    labeler = Labeler(bundle)
    request = MaskRequest(support_ids=(labeler.add_support(read_support_file(str(supports))),), instances="pieces")
    rows = pq.read_table(out / "labels.parquet").to_pylist()
    assert len(rows) == 6
    found = labeler.label_classes([(photos / row["file_name"]).read_bytes() for row in rows], request)
    for row, labels in zip(rows, found, strict=True):
        assert not isinstance(labels, PhotoFailure)
        assert labels[0].instances
        assert [i["rle"] for i in row["instances"]] == [i.counts for i in labels[0].instances]
    coco = Store(str(out)).read_json("labels.json")
    assert len(coco["annotations"]) == sum(len(row["instances"]) for row in rows)


def test_negatives_that_the_service_cannot_use(bundle: str, service: Running, fss: Fss, tmp_path: Path) -> None:
    """Its method says what it uses; the command is refused by the service in the same line as without one."""
    photos, supports = photo_folder(tmp_path / "photos", 1), supports_file(tmp_path)
    content = json.loads(supports.read_text())
    row = {"image": "ball.png", "box": [1, 1, 50, 50], "negative": True}
    supports.write_text(json.dumps({**content, "supports": [*content["supports"], row]}))
    for more in ((), ("--service", service.url)):
        done = fss(*_arguments(photos, supports, tmp_path / "out", bundle, *more))
        assert done.returncode == 2
        assert "supports[1]: method 'prior' reads no box marks" in done.stderr.splitlines()[-1]
    supports.write_text(json.dumps({**content, "prompt": "a red ball"}))
    done = fss(*_arguments(photos, supports, tmp_path / "out", bundle, "--service", service.url))
    assert done.returncode == 2
    assert "method 'prior' reads no `prompt`" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_two_jobs_at_once(bundle: str, tmp_path: Path) -> None:
    """Would catch ports, names or files that two commands on one machine share by mistake."""
    photos, supports = photo_folder(tmp_path / "photos", 24), supports_file(tmp_path)
    outs = [tmp_path / "a", tmp_path / "b"]
    running = [subprocess.Popen([*FSS, *_arguments(photos, supports, o, bundle)], env=clean_env()) for o in outs]
    assert [p.wait(300) for p in running] == [0, 0]
    assert _parts(outs[0]) == _parts(outs[1])
    assert Store(str(outs[0])).read_json("summary.json")["images"] == 24
