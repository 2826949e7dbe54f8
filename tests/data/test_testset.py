"""A test set straight from a directory: which photos, which episodes, and one line for every mistake."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fss_models.errors import FssError
from pipelines.base.workspace import Workspace
from pipelines.data.benchmarks.make import make_list
from pipelines.data.benchmarks.protocol import ListRequest
from pipelines.data.published import bind, read_list
from pipelines.data.shardset import Shards
from pipelines.data.testset import EvaluationSet, TestSetRequest, open_test_set
from tests.data.benchmarks.layouts import HEIGHT, WIDTH, label_map, pascal5i
from tests.data.conftest import jpeg, png, square, write

CATS = 80


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VOC2012 below it: four val photos with aeroplanes, three with buses, one of these with both; a small car."""
    root = tmp_path_factory.mktemp("voc")
    pascal5i(root)
    for i in range(6, 9):
        labels = label_map(1, rim=255)
        write(root, f"VOC2012/JPEGImages/2007_{i + 1:06d}.jpg", jpeg(HEIGHT, WIDTH, i))
        write(root, f"VOC2012/SegmentationClassAug/2007_{i + 1:06d}.png", png(labels))
    names = ["2007_000001", "2007_000002", "2007_000003", "2007_000005", "2007_000007", "2007_000008"]
    write(root, "VOC2012/ImageSets/Segmentation/val.txt", "\n".join(names) + "\n")
    write(root, "lists/val/fold0.txt", "".join(f"2007_{n:06d}__01\n" for n in (3, 8, 1, 7)))
    write(root, "lists/val/fold1.txt", "".join(f"2007_{n:06d}__06\n" for n in (2, 3, 5)))
    split = {"voc": {"train": ["2007_000004"], "test": ["2007_000001", "2007_000007", "2007_000002", "2007_000009"]}}
    write(root, "split.json", json.dumps(split))
    return root


@pytest.fixture(scope="module")
def workspace(ray_cluster: object, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where shards are kept over the module's tests."""
    return str(tmp_path_factory.mktemp("workspace"))


@pytest.fixture
def voc_request(voc: Path) -> TestSetRequest:
    return TestSetRequest(dataset="pascal5i", root=str(voc), episodes=20)


def shards_of(test: EvaluationSet, out: str) -> Shards:
    return Shards(Workspace(out).shards(test.data.name))


def test_by_rule_over_the_val_photos(voc_request: TestSetRequest, workspace: str, voc: Path) -> None:
    """Every pair of 2048 pixels is a query in turn; the same from the folder itself as from its parent."""
    test = open_test_set(voc_request, workspace)
    queries = [e.query_name for e in test.test_list]
    assert queries[:4] == [f"2007_{n:06d}.jpg" for n in (1, 3, 7, 8)] == queries[4:8]
    assert len(test.test_list) == 20
    assert set(test.dropped) == {"bicycle", "bird", "boat", "bottle"}
    assert test.photos == 6
    assert all(e.query not in e.supports and e.class_name == "aeroplane" for e in test.test_list)
    assert read_list(test.url) == test.test_list
    inside = open_test_set(replace(voc_request, root=str(voc / "VOC2012")), workspace)
    assert inside.test_list.sha256 == test.test_list.sha256
    buses = open_test_set(replace(voc_request, fold=1), workspace)
    assert {e.class_name for e in buses.test_list} == {"bus"}
    assert "car" in buses.dropped, "the car covers 100 pixels"
    assert buses.data == test.data, "all folds share the shards"


def test_void_is_ignored_and_only_test_photos_are_read(voc_request: TestSetRequest, workspace: str) -> None:
    test = open_test_set(voc_request, workspace)
    shards = shards_of(test, workspace)
    assert shards.manifest.images == {"train": 0, "test": 6}
    assert len(shards.block_index) == 0
    for episode in bind(shards, test.test_list):
        sample = shards.sample(episode.query, episode.class_id)
        assert sample.ignore[:, -1].all()
        assert not (sample.mask & sample.ignore).any()


def test_a_repeated_request_builds_nothing(voc_request: TestSetRequest, workspace: str) -> None:
    def state() -> dict[str, int]:
        return {str(p): p.stat().st_mtime_ns for p in Path(workspace).rglob("*") if p.is_file()
                and p.parent.name != "episodes"}

    open_test_set(voc_request, workspace)
    before = state()
    again = open_test_set(replace(voc_request, shots=2, seed=3), workspace)
    assert state() == before
    assert again.test_list.shots == 2


def test_a_published_list_is_the_one_that_fss_episodes_makes(
    voc_request: TestSetRequest, workspace: str, voc: Path
) -> None:
    test = open_test_set(replace(voc_request, lists=str(voc / "lists")), workspace)
    made = make_list("pascal5i", "hsnet", ListRequest(fold=0, episodes=20, lists=str(voc / "lists")))
    assert test.test_list.sha256 == made.sha256
    assert [e.query_name for e in test.test_list][:4] == [f"2007_{n:06d}" for n in (3, 8, 1, 7)], "in the list's order"
    assert (test.test_list.status, test.absent) == ("unverified", 0)


def test_a_split_restricts_what_is_tested(voc_request: TestSetRequest, workspace: str, voc: Path) -> None:
    held = replace(voc_request, split=str(voc / "split.json"), key="voc")
    fresh = open_test_set(held, workspace)
    assert {e.query_name for e in fresh.test_list} == {f"2007_{n:06d}.jpg" for n in (1, 7, 9)}
    listed = open_test_set(replace(held, lists=str(voc / "lists")), workspace)
    assert {e.query_name for e in listed.test_list} == {"2007_000001", "2007_000007"}
    assert listed.absent == 2
    assert listed.test_list.status == "drawn"
    assert "2 of its 4 pairs" in listed.test_list.origin
    assert shards_of(listed, workspace).manifest.images["test"] == 2


def test_a_changed_directory_is_followed(
    voc_request: TestSetRequest, voc: Path, workspace: str, tmp_path: Path
) -> None:
    import shutil

    root = tmp_path / "copy"
    shutil.copytree(voc, root)
    first = open_test_set(replace(voc_request, root=str(root)), workspace)
    write(root, "VOC2012/SegmentationClassAug/2007_000008.png", png(np.zeros((HEIGHT, WIDTH))))
    second = open_test_set(replace(voc_request, root=str(root)), workspace)
    assert "2007_000008.jpg" in {e.query_name for e in first.test_list}
    assert "2007_000008.jpg" not in {e.query_name for e in second.test_list}


def coco_directory(root: Path, categories: int = CATS) -> None:
    """Airplanes in four photos, dogs in one, zebras in three."""
    from pipelines.data.benchmarks.coco import CLASSES

    images, notes = [], []
    for number, name in enumerate(["airplane"] * 4 + ["dog"] + ["zebra"] * 3, start=1):
        write(root, f"images/{number:012d}.jpg", jpeg(80, 80, number))
        images.append({"id": number, "file_name": f"{number:012d}.jpg", "height": 80, "width": 80})
        notes.append({"id": number, "image_id": number, "category_id": 1 + CLASSES.index(name), "iscrowd": 0,
                      "segmentation": [square(5, 5, 60)]})
    names = [{"id": i + 1, "name": n} for i, n in enumerate(CLASSES[:categories])]
    write(root, "annotations/instances.json",
          json.dumps({"images": images, "annotations": notes, "categories": names}))


def test_a_coco_directory_has_interleaved_folds(workspace: str, tmp_path: Path) -> None:
    coco_directory(tmp_path / "coco")
    request = TestSetRequest(dataset="coco20i", root=str(tmp_path / "coco"), episodes=30)
    zero, two = open_test_set(request, workspace), open_test_set(replace(request, fold=2), workspace)
    assert {e.class_name for e in zero.test_list} == {"airplane"}
    assert zero.dropped["dog"] == "1 test photos, 2 are needed"
    assert len(zero.dropped) == 19
    assert {e.class_name for e in two.test_list} == {"zebra"}
    with pytest.raises(FssError, match="no class of fold 1 has the 2 test photos"):
        open_test_set(replace(request, fold=1), workspace)
    write(tmp_path, "lists/val/fold0.json", json.dumps(
        {"4": [f"val2014/COCO_val2014_{n:012d}.jpg" for n in (3, 1, 2)]}))
    listed = open_test_set(replace(request, lists=str(tmp_path / "lists")), workspace)
    assert {e.query for e in listed.test_list} == {1, 2, 3}


@pytest.mark.parametrize(("change", "line"), [
    ({"dataset": "fss1000"}, "no dataset 'fss1000' can be scored"),
    ({"fold": 7}, "there is no fold 7"),
    ({"fold": -1}, "there is no fold -1"),
    ({"root": "{tmp}/nowhere"}, "no such folder"),
    ({"root": "{tmp}/photos"}, "no SegmentationClass"),
    ({"root": "{tmp}/other"}, "no JPEGImages folder"),
    ({"root": "{tmp}/unpaired"}, "none of its 1 masks has a photo"),
    ({"root": "{tmp}/noval"}, "the test photos are unknown"),
    ({"annotations": "a.json"}, "ignores --annotations"),
    ({"lists": "{tmp}/nowhere"}, "no such list file"),
    ({"lists": "{tmp}/wrong"}, "tests bus"),
    ({"lists": "{tmp}/bad"}, "write lines as IMAGE__CC"),
    ({"lists": "{tmp}/far"}, "1 of the list's 2 photos are not among"),
    ({"split": "{voc}/split.json"}, "has no entry"),
    ({"split": "{tmp}/empty.json", "key": "voc"}, "names none of the"),
    ({"key": "voc"}, "give --split too, or"),
    ({"shots": 4}, "no class of fold 0 has the 5 test photos"),
])
def test_mistakes_are_one_line_and_write_nothing(
    change: dict[str, Any], line: str, voc_request: TestSetRequest, voc: Path, tmp_path: Path, ray_cluster: object
) -> None:
    write(tmp_path, "photos/JPEGImages/a.jpg", jpeg(8, 8))
    write(tmp_path, "other/readme.txt", "x")
    write(tmp_path, "unpaired/JPEGImages/a.jpg", jpeg(8, 8))
    write(tmp_path, "unpaired/SegmentationClass/b.png", png(np.ones((8, 8))))
    write(tmp_path, "noval/JPEGImages/a.jpg", jpeg(8, 8))
    write(tmp_path, "noval/SegmentationClass/a.png", png(np.ones((8, 8))))
    write(tmp_path, "wrong/val/fold0.txt", "2007_000002__06\n")
    write(tmp_path, "bad/val/fold0.txt", "2007_000002 6\n")
    write(tmp_path, "far/val/fold0.txt", "2007_000001__01\n2011_000001__01\n")
    write(tmp_path, "empty.json", json.dumps({"voc": {"train": [], "test": ["1999_000001"]}}))
    places = {"tmp": str(tmp_path), "voc": str(voc)}
    changed = replace(voc_request, **{k: v.format(**places) if isinstance(v, str) else v for k, v in change.items()})
    with pytest.raises(FssError) as error:
        open_test_set(changed, str(tmp_path / "out"))
    assert line in str(error.value)
    assert "\n" not in str(error.value)
    if "shots" not in change:  # which pairs there are is known from the pixels
        assert not (tmp_path / "out").exists()


def test_another_coco_directory_is_refused(tmp_path: Path) -> None:
    coco_directory(tmp_path / "coco", categories=79)
    with pytest.raises(FssError, match="its 79 categories are not those of coco20i"):
        open_test_set(TestSetRequest(dataset="coco20i", root=str(tmp_path / "coco")), str(tmp_path / "out"))


def test_the_held_out_photos_of_real_directories(shared: Path, workspace: str) -> None:
    """330 photos of VOC's own train list: none is in the published val lists, so lists are drawn by rule."""
    split = str(shared / "data" / "splits.json")
    for dataset, folder, photos in (("pascal5i", "voc_train", 132), ("coco20i", "coco_union", 148)):
        request = TestSetRequest(dataset=dataset, root=str(shared / "data" / folder), split=split, episodes=200)
        test = open_test_set(request, workspace)
        named = json.loads(Path(split).read_text())[folder]["test"]
        held = {Path(n).stem for n in named}
        shards = shards_of(test, workspace)
        assert {Path(r["file_name"]).stem for r in shards.rows.values()} <= held
        assert len(shards.rows) == photos == len(held)
        assert len({open_test_set(replace(request, fold=f), workspace).test_list.sha256 for f in range(4)}) == 4
        for episode in test.test_list:
            row = shards.rows[episode.query]
            assert dict(zip(row["class_ids"], row["class_areas"], strict=True))[episode.class_id] >= 2048
    lists = str(shared / "data" / "lists" / "pascal5i_hsnet")
    request = TestSetRequest(dataset="pascal5i", root=str(shared / "data" / "voc_train"), lists=lists, split=split)
    with pytest.raises(FssError, match="345 of the list's 345 photos are not among the 132"):
        open_test_set(request, workspace)
