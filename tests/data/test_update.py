"""Shards that follow their source: what is written when photos come, change or go, and photos over a side limit."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fss_models.errors import FssError
from pipelines.config.data import DataConfig, SourceConfig, SplitConfig
from pipelines.data import rle
from pipelines.data.episodes import episode_list
from pipelines.data.ledger import FormerBuild, plan_parts
from pipelines.data.schema import INDEX, EpisodeSample, Manifest
from pipelines.data.shards import build_shards
from pipelines.data.shardset import Shards
from pipelines.data.shrink import shrunk_size
from pipelines.data.stream import EpisodeStream
from tests.data import exports
from tests.data.conftest import jpeg, png, square, write

SIDES = (40, 60)  # height, width
Times = dict[str, int]


def _photos(root: Path, names: dict[str, tuple[str, ...]]) -> None:
    """Photos (name -> the classes in them) as a `pairs` folder."""
    for name, classes in names.items():
        write(root, f"images/{name}.jpg", jpeg(*SIDES, sum(name.encode())))
        for number, label in enumerate(classes):
            mask = np.zeros(SIDES)
            mask[5:25, 5 + 20 * number : 22 + 20 * number] = 255
            write(root, f"masks/{label}/{name}.png", png(mask))


def _config(root: Path, **over: object) -> DataConfig:
    given = {"name": "own", "source": SourceConfig(format="pairs", root=str(root)), "min_images": 1, "folds": 1,
             "split": SplitConfig(test_fraction=0.4, seed=1), "images_per_part": 4, "block_size": 3, **over}
    return DataConfig.model_validate(given)


def _files(out: Path) -> Times:
    """Parts and blocks with the time they were written."""
    found = [*out.glob("images/*.parquet"), *out.glob("blocks/train/class-*.parquet")]
    return {str(p.relative_to(out)): p.stat().st_mtime_ns for p in found}


def _written(before: Times, after: Times) -> tuple[int, int]:
    """How many parts and how many block files are new or were written again."""
    new = [n for n, at in after.items() if before.get(n) != at]
    return sum(n.startswith("images/") for n in new), sum(n.startswith("blocks/") for n in new)


@pytest.fixture
def grown(tmp_path: Path, ray_cluster: object) -> tuple[Path, Path, DataConfig, Manifest]:
    """(source, shards, configuration, manifest): 16 photos in four full parts, classes cup, dent and fork."""
    root, out = tmp_path / "in", tmp_path / "out"
    _photos(root, {f"p{i:02d}": ("cup", "dent") if i % 2 else ("cup", "fork") for i in range(16)})
    config = _config(root)
    return root, out, config, build_shards(config, str(out))


def _fresh(config: DataConfig, tmp_path: Path, name: str) -> Manifest:
    return build_shards(config, str(tmp_path / name))


def test_added_photos_write_their_own_parts_and_their_classes_only(
    grown: tuple[Path, Path, DataConfig, Manifest], tmp_path: Path
) -> None:
    """Also photos whose names come before all others; the content is that of a build from nothing."""
    root, out, config, first = grown
    shards = Shards(str(out))
    episode_list(shards, fold=0, shots=1, episodes=4, seed=0)
    before = _files(out)
    assert len([n for n in before if n.startswith("images/")]) == 4
    train = {r["file_name"] for r in shards.images("train")}
    _photos(root, {f"a{i}": ("fork",) for i in range(3)})  # before p00
    with pytest.raises(FssError, match="changed since these shards were built"):
        build_shards(config, str(out))
    assert _files(out) == before
    second = build_shards(config, str(out), update=True)
    after = _files(out)
    print(f"3 photos added to 16: {_written(before, after)} of {len(after)} (parts, block files) written")
    assert _written(before, after) == (1, 1)
    assert set(before) <= set(after)  # the old blocks of `fork` are there until the next update
    assert second.images["train"] + second.images["test"] == 19
    assert second.content_hash == _fresh(config, tmp_path, "whole").content_hash != first.content_hash
    assert train <= {r["file_name"] for r in Shards(str(out)).images("train")}
    assert not list((out / "episodes").glob("*.parquet"))  # they were drawn from fewer photos
    assert build_shards(config, str(out)) == second
    _same_content(str(out), str(tmp_path / "whole"))


def _same_content(one: str, other: str) -> None:
    """The same samples by name, whatever part they are in."""
    a, b = Shards(one), Shards(other)
    assert [r["file_name"] for r in a.rows.values()] == [r["file_name"] for r in b.rows.values()]
    for image_id, row in a.rows.items():
        assert a.photo(image_id)["image"] == b.photo(image_id)["image"]
        for class_id in row["class_ids"]:
            assert np.array_equal(a.sample(image_id, class_id).mask, b.sample(image_id, class_id).mask)
    rows = [[(r["class_id"], r["annotation_ids"], r["file"]) for r in s.block_index.to_pylist()] for s in (a, b)]
    assert rows[0] == rows[1]


def test_a_part_that_is_not_full_is_filled_up(
    grown: tuple[Path, Path, DataConfig, Manifest], tmp_path: Path
) -> None:
    """Four photos added one at a time leave one part, not four."""
    root, out, config, _ = grown
    for i in range(4):
        before = _files(out)
        _photos(root, {f"z{i}": ("dent",)})
        build_shards(config, str(out), update=True)
        assert _written(before, _files(out))[0] == 1
    assert len({row["part"] for row in Shards(str(out)).rows.values()}) == 5
    assert len(list((out / "images").glob("*.parquet"))) == 6  # and the one that the last update replaced
    _fresh(config, tmp_path, "whole")
    _same_content(str(out), str(tmp_path / "whole"))


def test_changed_and_removed_photos_write_their_parts_anew(
    grown: tuple[Path, Path, DataConfig, Manifest], tmp_path: Path
) -> None:
    root, out, config, _ = grown
    before = _files(out)
    mask = np.zeros(SIDES)
    mask[2:30, 2:30] = 255
    write(root, "masks/cup/p01.png", png(mask))
    (root / "images" / "p14.jpg").unlink()
    second = build_shards(config, str(out), update=True)
    parts, blocks = _written(before, _files(out))
    print(f"1 photo changed, 1 removed of 16: {parts} parts, {blocks} block files written")
    assert parts == 2  # what is left of two parts: seven photos
    assert second.content_hash == _fresh(config, tmp_path, "whole").content_hash
    assert any("p14.png has no photo" in r["reason"] for r in Shards(str(out)).failures.to_pylist())
    _same_content(str(out), str(tmp_path / "whole"))


def test_rejected_photos_stay_in_the_table_until_they_are_repaired(
    grown: tuple[Path, Path, DataConfig, Manifest]
) -> None:
    root, out, config, _ = grown
    good = (root / "images" / "p03.jpg").read_bytes()
    (root / "images" / "p03.jpg").write_bytes(good[:300])
    build_shards(config, str(out), update=True)
    for name in ("q1", "q2"):  # the broken photo's part is kept: its row must be too
        _photos(root, {name: ("cup",)})
        build_shards(config, str(out), update=True)
        rows = [r for r in Shards(str(out)).failures.to_pylist() if r["file_name"] == "p03.jpg"]
        assert [(r["stage"], r["reason"]) for r in rows] == [("decode", "truncated file")]
    (root / "images" / "p03.jpg").write_bytes(good)
    assert build_shards(config, str(out), update=True).failures == 0
    assert sum(Shards(str(out)).manifest.images.values()) == 18


def test_another_configuration_is_no_update(grown: tuple[Path, Path, DataConfig, Manifest]) -> None:
    _, out, config, _ = grown
    with pytest.raises(FssError, match="--force"):
        build_shards(config.model_copy(update={"seed": 5}), str(out), update=True)


def test_an_update_that_was_cut_off_ends_as_one_that_was_not(
    grown: tuple[Path, Path, DataConfig, Manifest], tmp_path: Path
) -> None:
    """It stops after its parts; then the source changes once more before it goes on."""
    root, out, config, first = grown
    _photos(root, {f"s{i}": ("dent",) for i in range(5)})
    blocks = out / "blocks" / "train"
    with pytest.MonkeyPatch.context() as patch:
        def stop(*_: object) -> None:
            raise KeyboardInterrupt
        patch.setattr("pipelines.data.shards._write_blocks", stop)
        with pytest.raises(KeyboardInterrupt):
            build_shards(config, str(out), update=True)
    assert Shards(str(out)).manifest == first  # the old shards are whole as long as the new ones are not
    assert len(list((out / "images").glob("*.parquet"))) == 6
    assert all(Shards(str(out)).photo(i) for i in Shards(str(out)).rows)
    _photos(root, {"t0": ("cup",)})
    second = build_shards(config, str(out), update=True)
    assert second.content_hash == _fresh(config, tmp_path, "whole").content_hash
    assert {f"blocks/train/{p.name}" for p in blocks.glob("class-*")} == {
        n for n in {*first.files, *second.files} if n.startswith("blocks/")}
    _same_content(str(out), str(tmp_path / "whole"))


def test_a_stream_that_was_open_reads_its_epoch_to_the_end(grown: tuple[Path, Path, DataConfig, Manifest]) -> None:
    """Would catch an update that takes a running training's blocks away. Without a pool it reads them all the time."""
    root, out, config, first = grown
    given: dict[str, Any] = {"classes": [c.class_id for c in first.classes], "batch": 1, "seed": 0,
                             "pool_bytes": 2 * _two_largest(str(out)), "pixel_bytes": 0}
    with EpisodeStream(str(out), **given) as whole, EpisodeStream(str(out), **given) as stream:
        count = sum(len(w) for w in stream.plan.windows(0))
        assert len(stream.plan.windows(0)) > 3
        expected = [_pixels(e) for e in islice(whole, count)]
        seen = [_pixels(next(stream))]
        _photos(root, {f"a{i}": ("cup", "dent", "fork") for i in range(5)})
        (root / "images" / "p02.jpg").unlink()
        second = build_shards(config, str(out), update=True)
        assert not {n for n in first.files if n.startswith("blocks/")} & set(second.files)
        seen += [_pixels(e) for e in islice(stream, count - 1)]
    assert seen == expected
    _photos(root, {"b0": ("cup",)})
    third = build_shards(config, str(out), update=True)
    assert set(_files(out)) == {*second.files, *third.files}  # the first state's are gone


def _two_largest(url: str) -> int:
    return sum(sorted(b["bytes"] for b in Shards(url).block_index.to_pylist())[-2:])


def _pixels(batch: list[EpisodeSample]) -> list[tuple[int, int, int]]:
    return [(s.image_id, int(s.image.sum()), int(s.mask.sum())) for e in batch for s in (*e.references, *e.targets)]


LAYOUTS: dict[str, Callable[[Path], None]] = {"coco": exports.coco, "yolo": exports.yolo, "cvat": exports.cvat,
                                              "label_studio": exports.label_studio}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_format_tells_which_photos_changed(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two photos more: the stamps of the others are the same, so their parts are kept."""
    from pipelines.data.open import open_source

    stamps = []
    for photos in (6, 8):
        monkeypatch.setattr(exports, "PHOTOS", photos)
        LAYOUTS[kind](tmp_path / "in")
        source = open_source(SourceConfig(format=kind, root=str(tmp_path / "in")))  # type: ignore[arg-type]
        stamps.append({i.file_name: (i.image_id, i.stamp) for i in source.items if i.stamp})
    assert len(stamps[0]) == 6
    assert len(stamps[1]) == 8
    assert stamps[0].items() <= stamps[1].items()


def test_the_plan_of_parts() -> None:
    def former(*parts: list[str]) -> FormerBuild:
        return FormerBuild([{"part": n, "versions": v} for n, v in enumerate(parts)], INDEX.empty_table(), len(parts))

    plan = plan_parts(["a", "b", "c"], former(["a", "b"], ["c"]), 2)
    assert (plan.kept_parts, plan.new_parts) == ({0, 1}, {})  # nothing changed: a part that is not full stays too
    plan = plan_parts(["x", "a", "b", "c"], former(["a", "b"], ["c"]), 2)
    assert (plan.kept_parts, plan.new_parts) == ({0}, {2: [0, 3]})
    plan = plan_parts(["b", "c"], former(["a", "b"], ["c", "d"]), 2)
    assert (plan.kept_parts, plan.new_parts) == (set(), {2: [0, 1]})
    plan = plan_parts(["a", "b", "c"], former(), 2)
    assert plan.new_parts == {0: [0, 1], 1: [2]}


# ---- a side limit -------------------------------------------------------------------------------------------------

def test_sizes_within_a_limit() -> None:
    assert shrunk_size(40, 60, 0) == (40, 60)
    assert shrunk_size(40, 60, 60) == (40, 60)
    assert shrunk_size(400, 600, 60) == (40, 60)
    assert shrunk_size(3, 6000, 100) == (1, 100)


def test_photos_over_the_limit_are_shrunk_with_their_masks(tmp_path: Path, ray_cluster: object) -> None:
    """Crowd, void-free polygons, boxes, areas; a JPEG stays one, a PNG too; smaller photos keep their bytes."""
    root, notes = tmp_path / "in", []
    big, small = jpeg(400, 600, 1), jpeg(40, 60, 2)
    lossless = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 100, 3), dtype=np.uint8)).save(lossless, "PNG")
    photos = {"big.jpg": (big, 400, 600), "small.jpg": (small, 40, 60), "tall.png": (lossless.getvalue(), 200, 100)}
    images = []
    for i, (name, (data, height, width)) in enumerate(photos.items()):
        write(root, f"images/{name}", data)
        images.append({"id": i, "file_name": name, "height": height, "width": width})
        s = height / 40
        notes.append({"id": i, "image_id": i, "category_id": 1, "segmentation": [square(5 * s, 5 * s, 20 * s)]})
    notes.append({"id": 8, "image_id": 0, "category_id": 2, "segmentation": [square(7, 7, 3)]})  # vanishes
    notes.append({"id": 9, "image_id": 0, "category_id": 1, "segmentation": [square(300, 300, 100)], "iscrowd": 1})
    document = {"images": images, "annotations": notes,
                "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "bead"}]}
    write(root, "annotations/a.json", json.dumps(document))
    write(tmp_path, "s.json", json.dumps({"in": {"train": ["big.jpg", "tall.png"], "test": ["small.jpg"]}}))
    config = _config(root, source=SourceConfig(format="coco", root=str(root)), max_side=60,
                     split=SplitConfig(file=str(tmp_path / "s.json")))
    manifest = build_shards(config, str(tmp_path / "out"))
    assert manifest.source["max_side"] == 60
    shards = Shards(str(tmp_path / "out"))
    sizes = {r["file_name"]: (r["height"], r["width"]) for r in shards.rows.values()}
    assert sizes == {"big.jpg": (40, 60), "small.jpg": (40, 60), "tall.png": (60, 30)}
    assert shards.photo(1)["image"] == small
    for image_id, kind in ((0, "JPEG"), (2, "PNG")):
        photo = Image.open(io.BytesIO(shards.photo(image_id)["image"]))
        assert (photo.format, photo.size) == (kind, sizes[list(photos)[image_id]][::-1])
    sample = shards.sample(0, 0)
    expected = np.zeros((40, 60), dtype=bool)
    expected[5:25, 5:25] = True
    assert np.array_equal(sample.mask, expected)
    assert np.array_equal(np.argwhere(sample.ignore).min(0), [30, 30])
    instance = shards.photo(0)["annotations"][0]["instances"][0]
    assert instance["bbox"] == [5, 5, 20, 20]
    assert instance["area"] == 400 == rle.area(instance["rle"], 40, 60)
    assert [(r["file_name"], r["stage"]) for r in shards.failures.to_pylist()] == [("big.jpg", "annotate")]
    assert "9 pixels vanishes at 60x40 (data.max_side)" in shards.failures["reason"][0].as_py()
    exact = np.asarray(Image.open(io.BytesIO(big))).reshape(40, 10, 60, 10, 3).mean((1, 3))
    assert np.abs(sample.image - exact).mean() < 2  # the JPEG is written again


def test_a_benchmark_has_no_side_limit() -> None:
    with pytest.raises(ValueError, match="max_side=0"):
        DataConfig.model_validate({"source": {"format": "coco20i", "root": "x"}, "max_side": 512})
