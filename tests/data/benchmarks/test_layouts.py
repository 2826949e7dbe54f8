"""What each benchmark's reader makes of its raw layout: classes, folds, splits, masks, crops. No cluster."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from fss_models.errors import FssError
from pipelines.config.data import BENCHMARKS, DataConfig, SourceConfig
from pipelines.data import rle
from pipelines.data.benchmarks import coco, find_benchmark, lvis, paco_part, pascal
from pipelines.data.benchmarks.check import check_benchmark
from pipelines.data.benchmarks.rules import photo_number
from pipelines.data.classes import NO_FOLD, fold_of
from pipelines.data.open import open_source
from pipelines.data.sources.base import ImageMasks, Source
from tests.data.benchmarks.conftest import benchmark_config
from tests.data.benchmarks.layouts import HEIGHT, LAYOUTS, WIDTH
from tests.data.conftest import jpeg, write

Raw = Callable[[str], Path]


def _open(name: str, root: Path, **over: object) -> Source:
    return open_source(SourceConfig.model_validate({"format": name, "root": str(root), **over}))


def _marks(source: Source, name: str) -> ImageMasks:
    item = next(i for i in source.items if i.file_name == name)
    return source.rasterise(item, source.fetch(item), HEIGHT, WIDTH)


def test_the_fold_tables_are_the_published_ones() -> None:
    """The published folds of PASCAL-5i and COCO-20i, by class name."""
    names = {0: "aeroplane bicycle bird boat bottle", 1: "bus car cat chair cow",
             2: "diningtable dog horse motorbike person", 3: "pottedplant sheep sofa train tvmonitor"}
    assert {f: " ".join(pascal.CLASSES[c] for c in pascal.fold_classes(f)) for f in range(4)} == names
    expected = ["person, airplane, boat, parking meter, dog, elephant, backpack, suitcase, sports ball, skateboard, "
            "wine glass, spoon, sandwich, hot dog, chair, dining table, mouse, microwave, refrigerator, scissors",
            "bicycle, bus, traffic light, bench, horse, bear, umbrella, frisbee, kite, surfboard, cup, bowl, orange, "
            "pizza, couch, toilet, remote, oven, book, teddy bear",
            "car, train, fire hydrant, bird, sheep, zebra, handbag, skis, baseball bat, tennis racket, fork, banana, "
            "broccoli, donut, potted plant, tv, keyboard, toaster, clock, hair drier",
            "motorcycle, truck, stop sign, cat, cow, giraffe, tie, snowboard, baseball glove, bottle, knife, apple, "
            "carrot, cake, bed, laptop, cell phone, sink, vase, toothbrush"]
    assert [", ".join(coco.CLASSES[c] for c in coco.fold_classes(f)) for f in range(4)] == expected
    assert coco.fold_classes(2, "contiguous") == list(range(40, 60))
    with pytest.raises(FssError, match="no fold 4"):
        coco.fold_classes(4)


def test_the_recipes_rules_give_the_same_folds() -> None:
    for name, table in (("pascal5i", pascal.fold_classes), ("coco20i", coco.fold_classes)):
        cfg = benchmark_config(name, "somewhere")
        classes = len(pascal.CLASSES if name == "pascal5i" else coco.CLASSES)
        assert cfg.min_pixels == 2 * 32 * 32
        for fold in range(4):
            assert [c for c in range(classes) if fold_of(c, classes, cfg) == fold] == table(fold)


def test_coco_to_pascal_transfer() -> None:
    folds = {0: "aeroplane boat chair diningtable dog person", 1: "bicycle bus horse sofa",
             2: "bird car pottedplant sheep train tvmonitor", 3: "bottle cat cow motorbike"}
    assert {c: coco.transfer_fold(c) for c in pascal.CLASSES} == {c: f for f, s in folds.items() for c in s.split()}


def test_a_benchmark_decides_its_own_rules() -> None:
    """A setting that would make the numbers incomparable without a word is an error."""
    source = {"format": "coco20i", "root": "x"}
    assert DataConfig.model_validate({"source": source, "fold_rule": "contiguous"}).fold_rule == "contiguous"
    for given, message in (({"folds": 5}, "says folds=4"), ({"min_area": 0.1}, "says min_area=0.0"),
                           ({"split": {"test_fraction": 0.5}}, "ignores data.split")):
        with pytest.raises(ValidationError, match=message):
            DataConfig.model_validate({"source": source, **given})
    with pytest.raises(ValidationError, match="only for the formats of benchmarks"):
        DataConfig(fold_rule="published")
    with pytest.raises(ValidationError, match="ignores 'lists'"):
        SourceConfig(format="coco20i", root="x", lists="y")
    again = benchmark_config("lvis92i", "x")
    assert DataConfig.model_validate(again.model_dump()) == again


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_check_tells_what_is_missing(name: str, raw: Raw, tmp_path: Path) -> None:
    """A small copy is whole only as a subset; an empty place and a copy with one file gone are not."""
    whole = check_benchmark(name, str(raw(name)), subset=True)
    assert whole.complete, whole.problems
    assert sum(whole.photos.values()) == len(_open(name, raw(name)).items)
    empty = check_benchmark(name, str(tmp_path / "none"))
    needed = [p for p in find_benchmark(name).parts if not p.optional]
    assert len(empty.problems) == len(needed)
    assert all(p.get for p in empty.parts)
    short = check_benchmark(name, str(raw(name)))
    assert short.complete == all(p.count in (None, 1) for p in needed)
    LAYOUTS[name](tmp_path)
    source = _open(name, tmp_path)
    (Path(source.cfg.root) / source.items[0].path).unlink()
    lost = check_benchmark(name, str(tmp_path), subset=True)
    if name in ("fss1000", "isic", "lung"):  # nothing names their photos
        assert sum(lost.photos.values()) == len(source.items) - 1
    else:
        assert not lost.complete
        assert "do not fit together" in lost.problems[0]


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_ids_are_distinct_and_the_fingerprint_follows_the_files(name: str, tmp_path: Path) -> None:
    LAYOUTS[name](tmp_path)
    source = _open(name, tmp_path)
    assert len({i.image_id for i in source.items}) == len(source.items) > 0
    assert {i.image_id for i in source.items} == {photo_number(i.file_name) for i in source.items}
    assert all(i.split in ("train", "test") for i in source.items)
    assert _open(name, tmp_path).fingerprint == source.fingerprint
    (Path(source.cfg.root) / source.items[0].path).write_bytes(jpeg(HEIGHT, WIDTH, 99) + b"more")
    assert _open(name, tmp_path).fingerprint != source.fingerprint


def test_pascal_void_split_and_lists(raw: Raw, tmp_path: Path) -> None:
    source = _open("pascal5i", raw("pascal5i"))
    assert Counter(i.split for i in source.items) == {"train": 3, "test": 3}
    marks = _marks(source, "2007_000003.jpg")
    assert [m.class_id for m in marks.instances] == [0, 5, 6]
    assert marks.void is not None
    assert rle.area(marks.void, HEIGHT, WIDTH) == HEIGHT
    write(tmp_path, "val/fold0.txt", "2007_000005__01\n2007_000099__01\n")
    for split in ("val", "trn"):
        for fold in range(4):
            if (split, fold) != ("val", 0):
                write(tmp_path, f"{split}/fold{fold}.txt", "2007_000001__06\n" if (split, fold) == ("trn", 1) else "")
    listed = _open("pascal5i", raw("pascal5i"), lists=str(tmp_path))
    assert {i.file_name: i.split for i in listed.items} == {"2007_000001.jpg": "train", "2007_000005.jpg": "test"}
    assert Counter(f.stage for f in listed.failures) == {"index": 1, "split": 4}


def test_coco_pools(raw: Raw) -> None:
    source = _open("coco20i", raw("coco20i"))
    assert {i.file_name[:5]: i.split for i in source.items} == {"train": "train", "val20": "test"}
    assert source.items[-1].image_id == 509
    assert [m.class_id for m in _marks(source, "val2014/COCO_val2014_000000000507.jpg").instances] == [1]


def test_fss_ids_and_splits(raw: Raw) -> None:
    source = _open("fss1000", raw("fss1000"))
    assert source.classes == ["trn_a", "trn_b", "val_a", "val_b", "test_a", "test_b"]
    assert source.fold_table == [NO_FOLD, NO_FOLD, 1, 1, 0, 0]
    assert Counter(i.split for i in source.items) == {"train": 20, "test": 40}
    marks = _marks(source, "test_b/3.jpg")
    assert marks.instances[0].class_id == 5
    assert rle.area(marks.instances[0].rle, HEIGHT, WIDTH) == (40 - 8) * 45


def test_fss_in_hsnets_layout(raw: Raw, tmp_path: Path) -> None:
    """Classes right below FSS-1000, split files elsewhere."""
    place = raw("fss1000") / "FSS-1000"
    shutil.copytree(place / "data", tmp_path / "FSS-1000")
    with pytest.raises(FssError, match="the test classes are unknown"):
        _open("fss1000", tmp_path)
    source = _open("fss1000", tmp_path, lists=str(place / "splits"))
    assert len(source.items) == 60
    assert [i.image_id for i in source.items] == [i.image_id for i in _open("fss1000", raw("fss1000")).items]


def test_lvis_folds_follow_the_shots(raw: Raw) -> None:
    source = _open("lvis92i", raw("lvis92i"))
    assert source.fold_table == [*range(10), NO_FOLD, NO_FOLD, NO_FOLD]  # 12 kept categories, 12 // 10 = 1 a fold
    marks = _marks(source, "val2017/000000002000.jpg")
    assert len(marks.instances) == 2
    counts = [40] * 35 + [3] * 10
    one, five = lvis.fold_table(counts, 1), lvis.fold_table(counts, 5)
    assert [one.count(f) for f in range(10)] == [4] * 10
    assert [five.count(f) for f in range(10)] == [3] * 10
    assert one[:12] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert lvis.fold_table([9] * 920, 1).count(3) == 92


def test_paco_crops_and_objects(raw: Raw) -> None:
    source = _open("paco_part", raw("paco_part"))
    assert source.fold_table == [0, 1, 2, 3]  # by place in the train pickle: 21, 5, 9, 30
    assert paco_part.fold_table(448).count(0) == 112
    item = next(i for i in source.items if i.file_name == "val2017/000000000100.jpg#0")
    assert item.crop == (4, 6, 35, 47)  # 4.6 + 30.7 and 6.2 + 40.9, cut to integers
    assert item.image_id == 100_000
    assert [m.class_id for m in _marks(source, item.file_name).instances] == [0, 0, 1]
    assert len(source.items) == 16  # two objects with a box in each of eight photos
    assert Counter(f.stage for f in source.failures) == {"annotate": 8}
    assert source.test_pools[0] == [f"val2017/{i:012d}.jpg" for i in range(100, 104)]  # type: ignore[attr-defined]


def test_pascal_part_classes_and_crops(raw: Raw) -> None:
    source = _open("pascal_part", raw("pascal_part"))
    assert source.classes == ["dog+HEAD", "dog+BODY", "bottle+HEAD", "bottle+BODY", "person+HEAD", "person+BODY",
                              "aeroplane+HEAD", "aeroplane+BODY"]  # no EAR: it has no train image; no aeroplane+TAIL
    assert source.fold_table == [0, 0, 1, 1, 2, 2, 3, 3]
    item = next(i for i in source.items if i.file_name == "2008_000005.jpg#dog.0")
    assert (item.crop, item.split) == ((5, 6, 45, 50), "test")
    assert [m.class_id for m in _marks(source, item.file_name).instances] == [0, 0, 1]
    assert [m.class_id for m in _marks(source, "2008_000005.jpg#dog.2").instances] == [1]
    assert not any("#cat" in i.file_name for i in source.items)
    assert source.entries == {0: 9, 1: 9, 2: 9, 3: 13}  # type: ignore[attr-defined]  # EAR and TAIL count as entries


def test_ade_isic_and_lung(raw: Raw) -> None:
    ade = _open("ade20k", raw("ade20k"))
    assert (len(ade.classes), ade.classes[:2], set(ade.fold_table or [])) == (150, ["wall", "building"], {NO_FOLD})
    isic = _open("isic", raw("isic"))
    assert isic.classes == ["lesion 1", "lesion 2", "lesion 3"]
    mask = rle.decode(_marks(isic, "2/ISIC_0000005.jpg").instances[0].rle, HEIGHT, WIDTH)
    assert np.array_equal(mask, np.arange(HEIGHT)[:, None].repeat(WIDTH, 1) >= 5)  # 127 is background, 255 is not
    lung = _open("lung", raw("lung"))
    assert [i.file_name for i in lung.items] == ["CHNCXR_0001_1.png", "CHNCXR_0002_1.png", "MCUCXR_0003_0.png"]
    assert [(f.file_name, f.stage) for f in lung.failures] == [("CHNCXR_0009_0.png", "split")]


def test_all_benchmarks_below_one_root_and_shared_photos_by_link(tmp_path: Path) -> None:
    """As their users keep them: one folder for all, COCO's photos linked into it (a link to above ends)."""
    for make in LAYOUTS.values():
        make(tmp_path / "all")
    for name in LAYOUTS:
        LAYOUTS[name](tmp_path / "own" / name)
        one, own = _open(name, tmp_path / "all"), _open(name, tmp_path / "own" / name)
        assert one.fingerprint == own.fingerprint, name
        assert check_benchmark(name, str(tmp_path / "all"), subset=True).complete
    photos = tmp_path / "all" / "LVIS" / "coco"
    photos.rename(tmp_path / "photos")
    photos.symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "loop").symlink_to(tmp_path / "all")
    assert _open("lvis92i", tmp_path / "all").fingerprint == _open("lvis92i", tmp_path / "own" / "lvis92i").fingerprint
