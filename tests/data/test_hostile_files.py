"""What fuzzing and reading found: files that ended a build with a trace instead of a row or one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fss_models.errors import FssError
from pipelines.config.data import SourceConfig
from pipelines.data import rle
from pipelines.data.open import open_source
from pipelines.data.parts import LONGEST, failure_table
from pipelines.data.sources.base import Source, SourceFailure
from tests.data import exports
from tests.data.conftest import write

DIGITS = "9" * 5000  # more than Python turns into a number


def opened(kind: str, root: Path) -> Source:
    return open_source(SourceConfig(format=kind, root=str(root)))  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "file", "text", "message"), [
    ("coco", "annotations/instances.json", f'{{"images": [{DIGITS}]', "a number is far too long"),
    ("label_studio", "project-3.json", "[" * 100_000, "nested too deeply"),
    ("yolo", "data.yaml", "names: " + "[" * 5000, "nested too deeply|not valid YAML"),
    ("cvat", "annotations.xml", '<?xml version="1.0" encoding="none"?><annotations/>', "not valid XML: unknown"),
    ("cvat", "annotations.xml", f'<annotations><image id="1" name="a" width="{DIGITS}" height="1"/></annotations>',
     "lacks its name, width or height"),
    ("voc", "labelmap.txt", f"cup:{DIGITS},0,0::\n", "no colour"),
    ("table", "part-0.parquet", "PAR1", r"Parquet file.*\(write it again\)"),
])
def test_files_that_are_refused_in_one_line(kind: str, file: str, text: str, message: str, tmp_path: Path) -> None:
    next(make for form, make, _ in exports.LAYOUTS.values() if form == kind)(tmp_path)
    write(tmp_path, file, text)
    with pytest.raises(FssError, match=message):
        opened(kind, tmp_path)


def test_class_names_with_half_characters_can_be_written(tmp_path: Path) -> None:
    exports.coco(tmp_path)
    file = tmp_path / "annotations" / "instances.json"
    file.write_text(file.read_text().replace('"bottle"', '"bot\\ud800tle"'))
    assert opened("coco", tmp_path).classes == ["bot\\ud800tle", "car"]


def test_photos_whose_names_are_not_utf8_are_told(tmp_path: Path) -> None:
    exports.yolo(tmp_path)
    os.rename(tmp_path / "images/train" / exports.name(0), os.fsencode(tmp_path / "images/train") + b"/caf\xe9.jpg")
    source = opened("yolo", tmp_path)
    assert len(source.items) == exports.PHOTOS - 1
    assert ("images/train/caf\\udce9.jpg", "the name of this file is not UTF-8: rename it") in [
        (f.file_name, f.reason) for f in source.failures]
    failure_table(source.failures)


def test_reasons_are_one_line_that_can_be_shown() -> None:
    (row,) = failure_table([SourceFailure("a\ud800.jpg", "index", "a\nb " + "x" * 9999)]).to_pylist()
    assert row["file_name"] == "a\\ud800.jpg"
    assert row["reason"].startswith("a b x")
    assert len(row["reason"]) == LONGEST


def test_counts_as_python_prints_bytes_are_no_program() -> None:
    with pytest.raises(ValueError, match="not text of compressed run lengths"):
        rle.from_coco({"size": [4, 4], "counts": "b''" + "-" * 100_000 + "b''"}, 4, 4)
