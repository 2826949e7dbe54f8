"""COCO annotation files read piece by piece: the records of `json`, exact bytes, clear mistakes, bounded memory."""

from __future__ import annotations

import hashlib
import io
import json
import tracemalloc
from pathlib import Path

import pytest

from fss_models.errors import FssError
from pipelines.config.data import SourceConfig
from pipelines.data.open import open_source
from pipelines.data.sources import coco_json
from pipelines.data.sources.coco import CocoAnnotation
from pipelines.data.sources.coco_json import CocoReader
from tests.data import exports
from tests.data.conftest import jpeg, square, write

DOCUMENT = {
    "info": {"description": "naïve [,{}\\\" ☃", "n": 12345}, "number": 12345, "nothing": None,
    "images": [{"id": 1, "file_name": "Zürich ☃.jpg", "height": 4, "width": 5}, {"id": 2, "file_name": "b.jpg"}],
    "annotations": [{"id": i, "image_id": 1 + i % 2, "category_id": 3, "segmentation": [[0.5, 1, 2, 3, 4, 5.25]]}
                    for i in range(20)],
    "categories": [{"id": 3, "name": "Möwe"}], "empty": [], "mixed": [1, "a", [], {}, -1.5e3, True],
}


@pytest.mark.parametrize("chunk", [1, 7, 64, 10**6])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("head", [b"", b"\xef\xbb\xbf"])
def test_records_are_those_of_json(
    chunk: int, indent: int | None, ascii_only: bool, head: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a number cut in two by the end of a chunk, and characters counted for bytes."""
    monkeypatch.setattr(coco_json, "CHUNK", chunk)
    raw = head + json.dumps(DOCUMENT, indent=indent, ensure_ascii=ascii_only).encode()
    reader, found = CocoReader(io.BytesIO(raw), "f.json"), {}
    for record in reader.records():
        value = reader.again(record)
        assert json.loads(raw[record.start : record.end]) == value
        found.setdefault(record.section, []).append(value)
    assert found == {k: v for k, v in DOCUMENT.items() if isinstance(v, list) and v}
    assert reader.sections == {k: isinstance(v, list) for k, v in DOCUMENT.items()}
    assert reader.sha256 == hashlib.sha256(raw).hexdigest()


@pytest.mark.parametrize("chunk", [1, 10**6])
@pytest.mark.parametrize(("raw", "byte"), [
    ('{"images": [{"id": 1} {"id": 2}]}', 22), ('{"images": [{"id": 1},]}', 22), ('{"images": [1, 2', 16),
    ('{"images" [1]}', 10), ('{"images": [1]} x', 16), ('{"images": [{"id": nul}]}', 19), ('{"ü": tru}', 7),
])
def test_an_error_names_the_byte_of_a_mistake(chunk: int, raw: str, byte: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco_json, "CHUNK", chunk)
    with pytest.raises(FssError, match=rf"not valid JSON: .* at byte {byte}$|not valid JSON: .* at byte {byte}\b"):
        list(CocoReader(io.BytesIO(raw.encode()), "f.json").records())


def test_a_file_that_is_not_coco_is_an_error(coco_root: Path) -> None:
    path = coco_root / "annotations" / "instances.json"
    document = json.loads(path.read_text())
    for text, match in (("[1]", "top level is not a JSON object"), ("", "top level is not a JSON object"),
                        (json.dumps({**document, "categories": {}}), "no list 'categories'"),
                        (json.dumps({**document, "annotations": [{"id": 7}]}), "annotations: the record at byte")):
        path.write_text(text)
        with pytest.raises(FssError, match=match):
            open_source(SourceConfig(format="coco", root=str(coco_root)))


def test_annotations_anywhere_in_the_file_are_found_again(tmp_path: Path) -> None:
    """A photo's annotations far apart, near one another and out of order; a file that changes meanwhile is an error."""
    images = [{"id": i, "file_name": f"{i}ü.jpg", "height": 40, "width": 60} for i in range(3)]
    notes = [{"image_id": n % 3, "category_id": 5, "segmentation": [square(n, 1, 2)], "pad": "x" * (n % 5) * 3000}
             for n in range(30)]
    document = {"annotations": notes, "categories": [{"id": 5, "name": "a"}], "images": images}
    write(tmp_path, "annotations/a.json", json.dumps(document, ensure_ascii=False))
    for record in images:
        write(tmp_path, f"images/{record['file_name']}", jpeg(40, 60))
    source = open_source(SourceConfig(format="coco", root=str(tmp_path)))
    for item in source.items:
        expect = [CocoAnnotation("annotation ?", 0, "5", False, n["segmentation"])
                  for n in notes if n["image_id"] == item.image_id]
        assert source.fetch(item).payload == expect
    write(tmp_path, "annotations/a.json", "x" * 200_000)
    with pytest.raises(FssError, match="changed while it was read"):
        source.fetch(source.items[0])


def test_memory_holds_ids_not_polygons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a driver that parses the whole file: polygons leave no trace in its memory."""
    monkeypatch.setattr(coco_json, "CHUNK", 100_000)
    polygon = [float(v) + 0.25 for v in range(600)]
    write(tmp_path, "images/1.jpg", jpeg(40, 60))
    with (tmp_path / "big.json").open("w") as out:
        out.write('{"images": [{"id": 1, "file_name": "1.jpg"}], "categories": [{"id": 1, "name": "a"}],')
        out.write('"annotations": [')
        for n in range(1000):
            out.write(("," if n else "") + json.dumps({"image_id": 1, "category_id": 1, "segmentation": [polygon]}))
        out.write("]}")
    size = (tmp_path / "big.json").stat().st_size
    tracemalloc.start()
    source = open_source(SourceConfig(format="coco", root=str(tmp_path), annotations="big.json"))
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size > 3_000_000
    assert len(source.items[0].annotations) == 1000 * 16
    assert kept < size / 20
    assert peak < size / 3


@pytest.mark.parametrize(("info", "told"), [
    ({"bundle_id": "abc", "description": "cups by sansa/tiny"}, 0),  # as `fss label` writes it
    ({"description": "mmdetection"}, 1), ("text", 1), (None, 1),
])
def test_confidences_are_told_of_other_programs_predictions(info: object, told: int, tmp_path: Path) -> None:
    exports.coco(tmp_path)
    file = tmp_path / "annotations" / "instances.json"
    document = json.loads(file.read_text())
    for number, annotation in enumerate(document["annotations"]):
        annotation["score"] = number / 100
    file.write_text(json.dumps({"info": info, **document}))
    source = open_source(SourceConfig(format="coco", root=str(tmp_path)))
    assert len(source.items) == exports.PHOTOS
    assert ["predictions of a model" in f.reason for f in source.failures] == [True] * told
