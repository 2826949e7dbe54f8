"""`fss label` with SAM 3's tiny random preset, end to end: its own instances, words, negative boxes, both engines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from fss_models import registry
from pipelines.bundles.bundle import save_bundle
from pipelines.data import rle
from pipelines.inference.label_sets import read_label_set
from pipelines.inference.labeler import Labeler
from pipelines.labelling.outputs import FORMATS, write_outputs
from tests.fixtures.command import Fss
from tests.fss_models.methods_here import needs_transformers
from tests.fss_models.sam3_case import mask, photo, tokenizer_file
from tests.labelling.helpers import DirectEngine, make_job
from tests.serving.helpers import encoded, run_fss

pytestmark = needs_transformers
PHOTOS = 3


def inputs(folder: Path, **config: object) -> tuple[str, Path, Path]:
    """A bundle, a folder of photos with a broken one, and a supports file with a prompt and a negative support."""
    words = {"class_names": True, "tokenizer_weights": tokenizer_file(folder / "tokenizer.json")}
    config = {"mode": "token", "threshold": 0.0, "negative_boxes": True, **words, **config}
    save_bundle(str(folder / "bundle"), registry.build("sam3", "debug", config), recipe_config=config)
    (folder / "photos").mkdir()
    for i in range(PHOTOS):
        (folder / "photos" / f"{i}.jpg").write_bytes(encoded(photo(i), quality=95))
    (folder / "photos" / "broken.jpg").write_bytes(b"\xff\xd8")
    for i in range(2):
        (folder / f"{i}.png").write_bytes(encoded(photo(i), "PNG"))
        (folder / f"{i}_mask.png").write_bytes(encoded(mask(i).astype(np.uint8) * 255, "PNG"))
    rows = [{"image": "0.png", "mask": "0_mask.png"}, {"image": "1.png", "mask": "1_mask.png", "negative": True}]
    file = folder / "supports.json"
    file.write_text(json.dumps({"class_name": "box", "prompt": "a red box", "supports": rows}))
    return str(folder / "bundle"), folder / "photos", file


def check_labels(out: Path) -> None:
    """Every photo has instances, all inside its mask, the broken one is a failure, COCO has an entry an instance."""
    rows = pq.read_table(out / "labels.parquet").to_pylist()
    good = [r for r in rows if r["error"] is None]
    assert (len(good), len(rows)) == (PHOTOS, PHOTOS + 1)
    assert all(r["instances"] for r in good)
    for row in good:
        whole = rle.decode(row["rle"].encode(), row["height"], row["width"])
        union = rle.union([i["rle"].encode() for i in row["instances"]], row["height"], row["width"])
        assert not (union.astype(bool) & ~whole.astype(bool)).any()
    coco = json.loads((out / "labels.json").read_text())
    assert len(coco["annotations"]) == sum(len(r["instances"]) for r in good)


@pytest.mark.parametrize("mode", ["canvas", "token"])
def test_a_job_without_a_cluster(mode: str, tmp_path: Path) -> None:
    url, photos, file = inputs(tmp_path, mode=mode)
    labeler = Labeler(url)
    (supports,) = read_label_set(str(file))
    made = make_job(photos, tmp_path / "out", labeler.add_support(supports), labeler, class_name="box", method="sam3",
                    preset="debug", instances="model", chunk=4)
    made.run(DirectEngine(labeler), made.chunks_left(), 1)
    write_outputs(made.out, made.manifest, list(FORMATS))
    check_labels(tmp_path / "out")


@pytest.mark.parametrize(("change", "line"), [
    ({"class_names": False, "tokenizer_weights": ""}, "method 'sam3' reads no `prompt`"),
    ({"negative_boxes": False}, "supports[1]: method 'sam3' uses no negative examples (build it with config "
                                "negative_boxes: true)"),
])
def test_what_the_bundle_cannot_use_is_refused_before_photos_are_listed(
        change: dict[str, object], line: str, tmp_path: Path, fss: Fss) -> None:
    url, _, file = inputs(tmp_path, **change)
    done = fss("label", "--images", str(tmp_path / "nowhere"), "--supports", str(file), "--out", str(tmp_path / "out"),
               "--bundle", url, "--workspace", str(tmp_path / "ws"))
    assert done.returncode == 2
    assert line in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["serve", "actors"])
def test_the_command_labels_as_this_process_does(engine: str, tmp_path: Path) -> None:
    """Byte for byte: the parts that a replica or an actor writes, and those of the labeler alone."""
    url, photos, file = inputs(tmp_path)
    out = tmp_path / "out"
    done = run_fss("label", "--images", str(photos), "--supports", str(file), "--out", str(out), "--bundle", url,
                   "--workspace", str(tmp_path / "ws"), "--engine", engine, "--instances", "model", "--format",
                   "parquet", "--set", "label.chunk=2", "--set", "label.batch=2", "--set", "serve.threads=1",
                   timeout=400)
    assert done.returncode == 0, done.stderr
    assert "sam3 is told in words: 'a red box'" in done.stderr
    assert "box: support 2: negative mask of" in done.stderr
    check_labels(out)
    labeler, (supports,) = Labeler(url), read_label_set(str(file))
    made = make_job(photos, tmp_path / "here", labeler.add_support(supports), labeler, class_name="box", method="sam3",
                    preset="debug", instances="model", chunk=2)
    made.run(DirectEngine(labeler, batch=2), made.chunks_left(), 1)
    parts = [{p.name: p.read_bytes() for p in (tmp_path / name / "parts").glob("chunk-*.parquet")}
             for name in ("out", "here")]
    assert parts[0] == parts[1]
