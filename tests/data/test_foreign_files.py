"""Exports as people's tools write them: foreign names, wrong numbers, the same twice, junk beside the files."""

from __future__ import annotations

import base64
import json
import multiprocessing
import os
import random
import signal
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fss_models.errors import FssError
from pipelines.base.junk import is_junk
from pipelines.base.storage import Store
from pipelines.config.data import DataConfig, SourceConfig
from pipelines.data import rle
from pipelines.data.episodes import draw_episodes
from pipelines.data.failures import told
from pipelines.data.open import open_source
from pipelines.data.parts import PartBuilder
from pipelines.data.schema import Manifest
from pipelines.data.shards import build_shards
from pipelines.data.shardset import Shards, copies_across
from pipelines.data.sources.base import FetchedImage, ImageMasks, Source, SourceImage, listing
from pipelines.data.sources.coco_index import identity, image_number
from pipelines.data.sources.finder import FileFinder, readings
from pipelines.data.stream import usable_blocks
from tests.data.conftest import jpeg, square, write

H, W = 40, 60
RECT = np.zeros((H, W), dtype=bool)
RECT[10:30, 5:25] = True
POINTS = [5, 10, 25, 10, 25, 30, 5, 30]


def note(number: int, image: Any, segmentation: Any, category: Any = 1, **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": category, "segmentation": segmentation, **more}


def coco(root: Path, images: list[dict[str, Any]], notes: list[dict[str, Any]],
         categories: list[dict[str, Any]] | None = None, name: str = "annotations/a.json") -> None:
    document = {"images": images, "annotations": notes, "categories": categories or [{"id": 1, "name": "cup"}]}
    write(root, name, json.dumps(document))


def opened(kind: str, root: Path, **over: str) -> Source:
    return open_source(SourceConfig(format=kind, root=str(root), **over))  # type: ignore[arg-type]


def marks(source: Source, number: int = 0) -> ImageMasks:
    item = source.items[number]
    return source.rasterise(item, source.fetch(item), H, W)


def masks(source: Source, number: int = 0) -> dict[str, np.ndarray]:
    found = marks(source, number)
    return {source.classes[m.class_id]: rle.decode(m.rle, H, W) for m in found.instances}


# ---- the door before pycocotools ----------------------------------------------------------------------------------

COUNTS = rle.encode(RECT)
RUNS = [5 * H + 10, *([20, 20] * 19), 20, 35 * H + 10]


@pytest.mark.parametrize("segmentation", [
    [POINTS], POINTS, [[float(v) for v in POINTS]], [[str(v) for v in POINTS]],
    {"size": [H, W], "counts": COUNTS.decode()}, {"size": [H, W], "counts": COUNTS},
    {"size": ["40", 60.0], "counts": RUNS},
    {"size": [H, W], "counts": RUNS}, {"size": [H, W], "counts": [float(v) for v in RUNS]},
    {"size": [H, W], "counts": str(COUNTS)}, {"size": [H, W], "counts": base64.b64encode(COUNTS).decode()},
])
def test_every_spelling_of_a_mask_gives_its_pixels(segmentation: Any) -> None:
    assert np.array_equal(rle.decode(rle.from_coco(segmentation, H, W), H, W), RECT)


@pytest.mark.parametrize(("segmentation", "reason"), [
    (None, "empty"), ([], "empty"), ({}, "empty"), ("text", "neither polygons nor RLE"), (7, "neither polygons"),
    ([[]], "no polygon with three corners"), ([[1, 2, 3, 4, 5, 6, 7]], r"7 numbers"), ([[1, 2, 3, 4]], "4 numbers"),
    ([[float("nan"), *POINTS[1:]]], "not finite"), ([[float("inf"), *POINTS[1:]]], "not finite"),
    ([[1e9, *POINTS[1:]]], "nowhere near the photo"), ([[10**400, *POINTS[1:]]], "flat list"),
    ([[[1, 2], [3, 4], [5, 6]]], "flat list"), ([[None, *POINTS[1:]]], "not finite"), ([{"x": 1}], "flat list"),
    ([[500.0, 500.0, -500.0, -500.0] * 10_000], "outline is longer"),
    ({"size": [H, W]}, "neither"), ({"size": [W, H], "counts": RUNS}, "mask is 40x60"),
    ({"size": [H], "counts": RUNS}, "mask is"), ({"size": None, "counts": RUNS}, "not whole numbers"),
    ({"size": [H, W], "counts": [H * W + 5, -5]}, "negative"), ({"size": [H, W], "counts": [H * W - 1]}, "add up"),
    ({"size": [H, W], "counts": [2**62, 2**62, 2**62, 2**62, H * W]}, "not whole numbers"),
    ({"size": [H, W], "counts": [0.5, H * W - 0.5]}, "not whole"), ({"size": [H, W], "counts": None}, "not whole"),
    ({"size": [H, W], "counts": ""}, "not text of compressed"), ({"size": [H, W], "counts": "ü"}, "not text"),
    ({"size": [H, W], "counts": COUNTS.decode()[:-1]}, "RLE"),
    ({"size": [H, W], "counts": COUNTS.decode() + "1"}, "RLE"),
    ({"size": [H, W], "counts": "oooooooooo0"}, "32 bits"), ({"size": [H, W], "counts": "b'x"}, "not text"),
])
def test_every_wrong_mask_is_refused_with_its_reason(segmentation: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        rle.from_coco(segmentation, H, W)


def test_a_piece_that_cannot_be_read_is_told_and_the_others_are_kept() -> None:
    told_: list[str] = []
    counts = rle.from_coco([POINTS, [50, 35, 55, 35, 55, 38, 50]], H, W, told_)
    assert np.array_equal(rle.decode(counts, H, W), RECT)
    assert told_ == ["piece 2: no polygon with three corners (7 numbers instead of an even count of 6 or more); "
                     "its other pieces are read"]


def _anything(rng: random.Random, depth: int = 0) -> Any:
    """Any JSON value, mostly one that looks like a part of a segmentation."""
    numbers = [0, 1, -1, 7, 59.5, 1e9, -1e308, 2**63, float("nan"), float("inf"), True, None, "3", "x"]
    roll = rng.random()
    if roll < 0.3 or depth > 3:
        return rng.choice(numbers)
    if roll < 0.75:
        return [_anything(rng, depth + 1) if rng.random() < 0.2 else rng.uniform(-30, 90)
                for _ in range(rng.randrange(12))]
    if roll < 0.85:
        return "".join(chr(rng.randrange(40, 120)) for _ in range(rng.randrange(30)))
    counts = rng.choice([COUNTS.decode(), str(COUNTS), RUNS, _anything(rng, depth + 1)])
    if isinstance(counts, str) and counts and rng.random() < 0.7:
        at = rng.randrange(len(counts))
        counts = counts[:at] + chr(rng.randrange(35, 125)) + counts[at + rng.randrange(2) :]
    if isinstance(counts, list) and counts and rng.random() < 0.7:
        counts = [*counts]
        counts[rng.randrange(len(counts))] = rng.choice(numbers)
    return {"size": rng.choice([[H, W], [W, H], [H], "40", None, [H, W, 1]]), "counts": counts}


def _fuzz(seed: int, rounds: int) -> int:
    """Give random segmentations to the door. Returns the number that was read; what is read must be a mask."""
    rng, read = random.Random(seed), 0
    for _ in range(rounds):
        segmentation = _anything(rng)
        try:
            counts = rle.from_coco(segmentation, H, W, [])
        except ValueError:
            continue
        mask = rle.decode(counts, H, W)
        assert mask.shape == (H, W)
        assert rle.area(counts, H, W) == mask.sum()
        read += 1
    return read


def test_random_masks_are_read_or_refused() -> None:
    assert _fuzz(1, 4000) > 100


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 140))
def test_many_random_masks_are_read_or_refused(seed: int) -> None:
    assert _fuzz(seed, 10_000) > 200


# ---- the finder ---------------------------------------------------------------------------------------------------

NFD = unicodedata.normalize("NFD", "schön.jpg")


@pytest.mark.parametrize(("name", "path"), [
    ("1.jpg", "images/a/1.jpg"), ("a\\1.jpg", "images/a/1.jpg"), ("./images/a/1.jpg", "images/a/1.jpg"),
    ("C:\\data\\a\\1.jpg", "images/a/1.jpg"), ("/home/x/2.jpg", "images/b/2.jpg"),
    ("../../up/4/b/2.jpg", "images/b/2.jpg"),
    ("b/3.jpg", "images/b/3.jpg"), ("my%20cup.jpg", "images/my cup.jpg"), ("s3://bucket/x/k%231.jpg", "images/k#1.jpg"),
    ("s3://bucket/x/k#1.jpg", "images/k#1.jpg"), ("s3://bucket/x/q?1.jpg", "images/q?1.jpg"),
    ("https://host/x/1.jpg?sig=%2Fa#top", "images/a/1.jpg"), ("/data/local-files/?d=b/3.jpg", "images/b/3.jpg"),
    (NFD, "images/schön.jpg"), ("frame_000001", "images/frame_000001.PNG"), ("v.0001", "images/v.0001.jpg"),
    ("MY CUP.JPG", "images/my cup.jpg"), ("4.jpg", None), ("", None), ("a/", None), ("http://[bad/1?x", None),
])
def test_names_of_every_kind_find_their_file(name: str, path: str | None) -> None:
    finder = FileFinder(["images/a/1.jpg", "images/b/2.jpg", "images/a/3.jpg", "images/b/3.jpg", "images/my cup.jpg",
                         "images/k#1.jpg", "images/q?1.jpg", "images/schön.jpg", "images/frame_000001.PNG",
                         "images/v.0001.jpg"])
    assert finder.find(name) == path


def test_a_name_that_fits_two_files_is_refused_with_both() -> None:
    finder = FileFinder(["x/1.jpg", "y/1.jpg", "2.jpg", "y/2.jpg", "f.jpg", "f.png", "train/1.jpg"])
    with pytest.raises(FssError, match=r"3 photos have this name, the first train/1.jpg and x/1.jpg"):
        finder.find("other/1.jpg")
    with pytest.raises(FssError, match=r"2 photos have this name, the first f.jpg and f.png"):
        finder.find("f")
    assert finder.find("2.jpg") == "2.jpg"  # the whole path
    assert finder.match("1.jpg", within="x") == ("x/1.jpg", True)
    assert finder.match("z/2.jpg", without={"y"}) == ("2.jpg", False)
    assert finder.match("1.jpg", prefer=lambda f: f.startswith("train")) == ("train/1.jpg", True)


def test_the_literal_reading_of_a_name_is_the_first() -> None:
    assert list(readings("a%20b.jpg")) == ["a%20b.jpg", "a b.jpg"]
    assert FileFinder(["a b.jpg", "a%20b.jpg"]).find("a%20b.jpg") == "a%20b.jpg"


def test_junk_is_in_no_listing(tmp_path: Path) -> None:
    for name in ("images/1.jpg", "images/._1.jpg", "images/.ipynb_checkpoints/1.jpg", "__MACOSX/images/._1.jpg",
                 "images/Thumbs.db", ".DS_Store", "annotations/._a.json", "images/desktop.ini"):
        write(tmp_path, name, b"x")
    assert list(listing(Store(str(tmp_path)))) == ["images/1.jpg"]
    assert not is_junk("images/thumbs/1.jpg")


# ---- COCO ---------------------------------------------------------------------------------------------------------

def test_ids_are_of_one_type() -> None:
    assert [identity(v) for v in (7, "7", 7.0, "7.0", " 7 ", "a7")] == [7, 7, 7, 7, 7, "a7"]
    assert image_number(2**70) == image_number(str(2**70)) < 2**48
    for wrong in (None, True, 7.5, float("nan"), [7], ""):
        with pytest.raises(ValueError, match="is no id"):
            identity(wrong)


def test_coco_with_text_ids_and_foreign_names(tmp_path: Path) -> None:
    for name in ("1.jpg", "2.jpg"):
        write(tmp_path, f"images/{name}", jpeg(H, W))
    images = [{"id": "1", "file_name": "images\\1.jpg", "height": "40", "width": 60.0},
              {"id": "zwei-ü", "file_name": "../up/4/2.jpg", "height": None, "width": None}]
    coco(tmp_path, images, [note(1, 1, [POINTS], "1"), note(2, "zwei-ü", [POINTS], 2.0), note(3, 1, [POINTS], [1])],
         [{"id": 1, "name": " cup "}, {"id": "2", "name": "fork"}])
    source = opened("coco", tmp_path)
    assert source.classes == ["cup", "fork"]
    by_path = {item.path: number for number, item in enumerate(source.items)}
    assert {item.file_name for item in source.items} == {"images/1.jpg", "images/2.jpg"}
    assert np.array_equal(masks(source, by_path["images/1.jpg"])["cup"], RECT)
    assert np.array_equal(masks(source, by_path["images/2.jpg"])["fork"], RECT)
    assert marks(source, by_path["images/1.jpg"]).problems == [
        "annotation 3: its category id [1] is not in the categories"]


def test_coco_records_that_repeat(tmp_path: Path) -> None:
    for name in ("1.jpg", "2.jpg", "3.jpg", "b/9.jpg"):
        write(tmp_path, f"images/{name}", jpeg(H, W))
    images = [{"id": 1, "file_name": "1.jpg"}, {"id": 1, "file_name": "2.jpg"},  # one id for two photos
              {"id": 3, "file_name": "3.jpg"}, {"id": 3, "file_name": "3.jpg"},  # word for word
              {"id": 4, "file_name": "3.jpg"},  # the photo again
              {"id": 5, "file_name": "a/9.jpg"}, {"id": 6, "file_name": "b/9.jpg"}]  # a/9.jpg is missing
    coco(tmp_path, images, [note(1, 3, [POINTS])])
    source = opened("coco", tmp_path)
    assert [(i.image_id, i.path) for i in source.items] == [(3, "images/3.jpg"), (6, "images/b/9.jpg")]
    reasons = {f.file_name: f.reason for f in source.failures}
    assert reasons["1.jpg"] == reasons["2.jpg"] == "2 image records have the same id 1 (1.jpg, 2.jpg)"
    assert [f.reason for f in source.failures if f.file_name == "3.jpg"] == [
        "2 image records have the same id 3, word for word, and are read once",
        "another record has this photo already (3.jpg)"]
    assert "this photo is missing; images/b/9.jpg only ends like it" in reasons["images/b/9.jpg"]


def test_coco_class_names_that_repeat(tmp_path: Path) -> None:
    write(tmp_path, "1.jpg", jpeg(H, W))
    images, notes = [{"id": 1, "file_name": "1.jpg"}], [note(1, 1, [POINTS], 1), note(2, 1, [square(40, 5, 9)], 2)]
    coco(tmp_path, images, notes, [{"id": 1, "name": "cup"}, {"id": 2, "name": "cup "}, {"id": 3, "name": "fork"}])
    source = opened("coco", tmp_path)
    assert source.classes == ["cup", "fork"]
    assert [m.class_id for m in marks(source).instances] == [0, 0]
    assert source.failures[0].reason == "categories 1 and 2 have the same name cup and are read as one class"
    for wrong, message in [([{"id": 1, "name": "a"}, {"id": "1", "name": "b"}], "the same id 1: a and b"),
                           ([{"id": 1, "name": "head", "supercategory": "dog"},
                             {"id": 2, "name": "head", "supercategory": "cat"}], "named head, of dog and of cat"),
                           ([{"id": 1, "name": " "}], "category 1 has no name")]:
        coco(tmp_path, images, notes, wrong)
        with pytest.raises(FssError, match=message):
            opened("coco", tmp_path)


def test_coco_predictions_are_named_as_such(tmp_path: Path) -> None:
    write(tmp_path, "1.jpg", jpeg(H, W))
    coco(tmp_path, [{"id": 1, "file_name": "1.jpg"}], [note(1, 1, [POINTS], score=0.9)])
    assert "1 annotations have a confidence: predictions" in opened("coco", tmp_path).failures[0].reason
    write(tmp_path, "annotations/a.json", json.dumps([note(1, 1, [POINTS], score=0.9)]))
    with pytest.raises(FssError, match="these are predictions"):
        opened("coco", tmp_path)
    write(tmp_path, "annotations/a.json", json.dumps({"images": []}).encode("utf-16"))
    with pytest.raises(FssError, match="UTF-16"):
        opened("coco", tmp_path)


# ---- CVAT ---------------------------------------------------------------------------------------------------------

def cvat(images: list[tuple[str, str, str]]) -> str:
    """annotations.xml of (name, subset, points of a cup)."""
    rows = "".join(f'<image id="{i}" name="{n}" {f"""subset="{s}" """ if s else ""}width="{W}" height="{H}">'
                   f'<polygon label="cup " points="{p}"></polygon></image>' for i, (n, s, p) in enumerate(images))
    return ("<annotations><meta><task><labels><label><name> cup</name></label></labels></task></meta>"
            f"{rows}</annotations>")


def test_cvat_subsets_and_frames(tmp_path: Path) -> None:
    left, right = "5,10;25,10;25,30;5,30", "35,10;55,10;55,30;35,30"
    for name in ("Train/1.jpg", "default/1.jpg", "default/2.jpg", "frame_000001.png"):
        write(tmp_path, f"images/{name}", jpeg(H, W))
    write(tmp_path, "annotations.xml", cvat([("1.jpg", "default", left), ("1.jpg", "Train", right),
                                             ("2.jpg", "Train", right), ("frame_000001", "", left)]))
    source = opened("cvat", tmp_path)
    assert [i.path for i in source.items] == ["images/default/1.jpg", "images/Train/1.jpg", "images/frame_000001.png"]
    assert [f.file_name for f in source.failures] == ["2.jpg"]  # that of the other subset is another photo
    assert np.array_equal(masks(source, 0)["cup"], RECT)
    assert np.array_equal(masks(source, 1)["cup"], np.roll(RECT, 30, axis=1))
    write(tmp_path, "annotations.xml", cvat([]).encode("utf-16"))
    with pytest.raises(FssError, match="UTF-16"):
        opened("cvat", tmp_path)


# ---- builds -------------------------------------------------------------------------------------------------------

class _KillsItsWorker(Source):
    """Photos of one object; reading the masks of `bad.jpg` ends the process as a crash in C does."""

    def __init__(self, root: str, names: list[str]) -> None:
        super().__init__(SourceConfig(format="coco", root=root))
        self.classes = ["cup"]
        self.items = [SourceImage(image_id=i, file_name=n, path=n, size=(H, W)) for i, n in enumerate(names)]

    def rasterise(self, item: SourceImage, fetched: FetchedImage, height: int, width: int) -> ImageMasks:
        if item.file_name == "bad.jpg":
            os.kill(os.getpid(), signal.SIGKILL)
        return ImageMasks()


def test_a_photo_that_kills_its_worker_fails_and_the_part_is_built(tmp_path: Path) -> None:
    names = ["a.jpg", "bad.jpg", "c.jpg"]
    for name in names:
        write(tmp_path, f"in/{name}", jpeg(H, W))
    source = _KillsItsWorker(str(tmp_path / "in"), names)
    cfg = DataConfig.model_validate({"name": "d", "source": {"format": "coco", "root": str(tmp_path / "in")}})
    builder = PartBuilder(source=source, cfg=cfg, out=str(tmp_path / "out"))
    planned = (0, [(item, "train") for item in source.items])
    codes = []
    for _ in range(4):
        worker = multiprocessing.get_context("spawn").Process(target=builder, args=(planned,))
        worker.start()
        worker.join(120)
        codes.append(worker.exitcode)
    assert codes == [-9, -9, -9, 0]
    store = Store(str(tmp_path / "out"))
    assert store.read_table("build/failures-00000.parquet").to_pylist() == [
        {"file_name": "bad.jpg", "stage": "decode", "reason": "3 workers crashed while they read it, or "
         "took longer than 60 s (data.max_seconds)"}]
    assert store.read_table("images/part-00000.parquet")["file_name"].to_pylist() == ["a.jpg", "c.jpg"]


def _build(root: Path, out: Path, **over: Any) -> Manifest:
    cfg = {"name": "d", "source": {"format": "coco", "root": str(root)}, "min_images": 1, "min_area": 0.0,
           "split": {"test_fraction": 0.5}, **over}
    return build_shards(DataConfig.model_validate(cfg), str(out))


def test_no_episode_has_two_copies_of_a_photo(ray_cluster: object, tmp_path: Path) -> None:
    """40 names of 8 photos, each in both splits, and 40 names of 20 others, of which some are tested only."""
    def content(i: int) -> int:
        return i % 8 if i < 40 else i // 2

    images, notes = [], []
    for i in range(80):
        write(tmp_path, f"in/images/{i}.jpg", jpeg(H, W, content(i)))
        images.append({"id": i, "file_name": f"{i}.jpg"})
        notes.append(note(i, i, [POINTS]))
    coco(tmp_path / "in", images, notes)
    _build(tmp_path / "in", tmp_path / "out")
    shards = Shards(str(tmp_path / "out"))
    assert len(shards.copies) == 52
    across = copies_across(shards)
    trained = {r["sha256"] for r in shards.images("train")}
    assert len(across) == len([r for r in shards.images("test") if r["sha256"] in trained])
    assert all(content(int(a.split(".")[0])) == content(int(b.split(".")[0])) for a, b in across)
    for episode in draw_episodes(shards, fold=0, shots=3, episodes=50, seed=0):
        contents = [shards.rows[i]["sha256"] for i in (episode.query, *episode.supports)]
        assert len(set(contents)) == 4
        assert not trained.intersection(contents)
    used = [shards.rows[i]["sha256"] for b in usable_blocks(shards, [0], set()) for i in b.images]
    assert len(used) == len(set(used)) == len({r["sha256"] for r in shards.images("train")})


def test_a_build_with_nothing_left_says_why(ray_cluster: object, tmp_path: Path) -> None:
    images = [{"id": i, "file_name": f"{i}.jpg", "height": H, "width": W} for i in range(6)]
    for i in range(6):
        write(tmp_path, f"in/images/{i}.jpg", jpeg(H, W, i))
    coco(tmp_path / "in", images, [note(i, i, [] if i < 5 else [[1, 2, float("nan"), 4, 5, 6]]) for i in range(6)])
    with pytest.raises(FssError) as error:
        _build(tmp_path / "in", tmp_path / "out")
    assert "5 like 0.jpg: annotation 0: cup: its segmentation is empty (a box only?)" in str(error.value)
    assert "1: 5.jpg: annotation 5: cup: a polygon has a corner that is not finite" in str(error.value)
    assert "lower data.min_images" not in str(error.value)
    assert Store(str(tmp_path / "out")).read_table("failures.parquet").num_rows == 6


def test_failures_are_told_by_kind() -> None:
    rows = [{"file_name": f"{i}.jpg", "stage": "annotate", "reason": f"line {i}: cup: mask is {i}x3, its image 7x8"}
            for i in range(3)] + [{"file_name": "x", "stage": "index", "reason": f"reason {c}"} for c in "abcde"]
    assert told(rows) == ["3 like 0.jpg: line 0: cup: mask is 0x3, its image 7x8", "1: x: reason a", "1: x: reason b",
                          "1: x: reason c", "2 of 2 other kinds"]
