"""Building shards: the same input gives the same hash, mistakes become rows, and a kill costs little."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from fss_models.errors import FssError
from fss_models.photo_files import decode_image
from pipelines.config.data import DataConfig, SourceConfig, SplitConfig
from pipelines.data import rle
from pipelines.data.classes import fold_of
from pipelines.data.schema import BLOCKS, IMAGES
from pipelines.data.shards import build_shards
from pipelines.data.shardset import Shards

pytestmark = pytest.mark.usefixtures("ray_cluster")


def _config(kind: str, root: Path | str = "", **over: Any) -> DataConfig:
    source = SourceConfig(format=kind, root=str(root), images=24, side=64) if kind == "shapes" else SourceConfig(
        format=kind, root=str(root))
    given = {"name": kind, "source": source, "split": SplitConfig(test_fraction=0.4), "min_images": 1, "folds": 2,
             "images_per_part": 5, "block_size": 4, **over}
    return DataConfig(**given)


def _reasons(url: Path) -> dict[str, tuple[str, str]]:
    return {r["file_name"]: (r["stage"], r["reason"]) for r in Shards(str(url)).failures.to_pylist()}


def test_the_layout(shapes_shards: str, shapes_config: DataConfig) -> None:
    """Every file has its schema; a part holds its fixed group; a row group is a block of one class."""
    root = Path(shapes_shards)
    parts = sorted((root / "images").iterdir())
    assert len(parts) == 4
    ids = []
    for part in parts:
        table = pq.read_table(part)
        assert table.schema.equals(IMAGES)
        ids += table["image_id"].to_pylist()
    assert ids == list(range(160))
    blocks = 0
    for file in (root / "blocks" / "train").glob("class-*.parquet"):
        opened = pq.ParquetFile(file)
        assert opened.schema_arrow.equals(BLOCKS)
        blocks += opened.num_row_groups
        for group in range(opened.num_row_groups):
            assert opened.metadata.row_group(group).num_rows <= shapes_config.block_size
    shards = Shards(shapes_shards)
    assert blocks == sum(c.blocks for c in shards.manifest.classes) == len(shards.block_index)
    assert not (root / "build").exists()


def test_blocks_hold_each_training_annotation_once(shapes_shards: str) -> None:
    shards = Shards(shapes_shards)
    for class_id in shards.classes:
        rows = [b for b in shards.block_index.to_pylist() if b["class_id"] == class_id]
        images = [i for b in rows for i in b["image_ids"]]
        assert sorted(images) == shards.photos_of(class_id, "train")
        assert len(images) == shards.classes[class_id].train_images


def test_rows_carry_the_photo_and_its_masks(shapes_shards: str) -> None:
    """The block's bytes, the image table's and the source's are the same, and so are the masks."""
    from pipelines.data.sources.drawing import draw_image

    shards = Shards(shapes_shards)
    block = pq.ParquetFile(next((Path(shapes_shards) / "blocks" / "train").glob("class-*.parquet"))).read_row_group(0)
    for row in block.to_pylist():
        drawing = draw_image(0, row["image_id"], 96)
        assert row["image"] == drawing.jpeg == shards.photo(row["image_id"])["image"]
        truth = np.any([m for c, m in drawing.objects if c == row["class_id"]], axis=0)
        assert np.array_equal(rle.union([i["rle"] for i in row["instances"]], 96, 96), truth)
        sample = shards.sample(row["image_id"], row["class_id"])
        assert np.array_equal(sample.mask, truth)
        assert np.array_equal(sample.image, decode_image(drawing.jpeg))


def test_same_input_and_seed_same_hash(tmp_path: Path) -> None:
    config = _config("shapes")
    one, two = (build_shards(config, str(tmp_path / n)) for n in "ab")
    other_parts = build_shards(_config("shapes", images_per_part=7), str(tmp_path / "c"))
    assert one.content_hash == two.content_hash == other_parts.content_hash
    assert one.files == two.files
    another = build_shards(_config("shapes", seed=1), str(tmp_path / "d"))
    assert another.content_hash != one.content_hash


def test_a_moved_source_has_the_same_content(coco_root: Path, tmp_path: Path) -> None:
    one = build_shards(_config("coco", coco_root), str(tmp_path / "a"))
    moved = coco_root.rename(tmp_path / "moved")
    two = build_shards(_config("coco", moved), str(tmp_path / "b"))
    assert one.content_hash == two.content_hash


def test_a_finished_build_returns_at_once(tmp_path: Path) -> None:
    out = tmp_path / "s"
    first = build_shards(_config("shapes"), str(out))
    times = {p: p.stat().st_mtime_ns for p in out.rglob("*.parquet")}
    assert build_shards(_config("shapes"), str(out)) == first
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*.parquet")} == times


def test_another_configuration_needs_force(tmp_path: Path) -> None:
    out = tmp_path / "s"
    first = build_shards(_config("shapes"), str(out))
    (out / "mine.txt").write_text("not ours")
    with pytest.raises(FssError, match="--force"):
        build_shards(_config("shapes", seed=3), str(out))
    assert build_shards(_config("shapes", seed=3), str(out), force=True).content_hash != first.content_hash
    assert (out / "mine.txt").read_text() == "not ours"


def test_coco_mistakes_become_rows_and_the_work_goes_on(coco_root: Path, tmp_path: Path) -> None:
    manifest = build_shards(_config("coco", coco_root), str(tmp_path / "s"))
    assert sum(manifest.images.values()) == 12
    assert [c.name for c in manifest.classes] == ["bird", "cup"]
    reasons = _reasons(tmp_path / "s")
    assert manifest.failures == len(reasons) == 6
    assert reasons["missing.jpg"][0] == "index"
    assert reasons["image_id 999"][0] == "index"
    assert reasons["broken.jpg"] == ("decode", "truncated file")
    assert reasons["empty.jpg"] == ("decode", "empty file (0 bytes)")
    assert reasons["001.jpg"] == ("annotate", "annotation 901: cup: mask is 10x10, its image 60x40")
    assert reasons["002.jpg"][0] == "annotate"


def test_crowd_is_ignored_not_learned(coco_root: Path, tmp_path: Path) -> None:
    build_shards(_config("coco", coco_root), str(tmp_path / "s"))
    sample = Shards(str(tmp_path / "s")).sample(100, 1)
    assert sample.mask.sum() == 400
    assert sample.ignore[30:].all()
    assert not (sample.mask & sample.ignore).any()


def test_voc_folds_void_and_wrong_sizes(voc_root: Path, tmp_path: Path) -> None:
    manifest = build_shards(_config("voc", voc_root, folds=4, fold_rule="contiguous"), str(tmp_path / "s"))
    assert [(c.name, c.fold) for c in manifest.classes] == [("aeroplane", 0), ("tvmonitor", 3)]
    assert len(manifest.dropped_classes) == 18
    shards = Shards(str(tmp_path / "s"))
    sample = shards.sample(shards.images("train")[0]["image_id"], 0)
    assert sample.ignore[5, 5:30].all()
    assert sample.ignore.sum() == 25
    assert _reasons(tmp_path / "s")["2008_000001.jpg"] == ("decode", "recorded as 30x30 but the photo is 60x40")


def test_pairs_mistakes_become_rows(pairs_root: Path, tmp_path: Path) -> None:
    manifest = build_shards(_config("pairs", pairs_root), str(tmp_path / "s"))
    assert [c.name for c in manifest.classes] == ["dent", "scratch"]
    stages = {name: stage for name, (stage, _) in _reasons(tmp_path / "s").items()}
    assert stages == {"lonely.jpg": "index", "ghost": "index", "size.jpg": "annotate", "none.jpg": "annotate"}


def test_a_class_with_a_single_image_is_dropped_and_listed(voc_root: Path, tmp_path: Path) -> None:
    from tests.data.conftest import jpeg, png, write

    write(voc_root, "VOC2012/JPEGImages/2009_000001.jpg", jpeg(40, 60))
    write(voc_root, "VOC2012/SegmentationClass/2009_000001.png", png(np.full((40, 60), 8)))
    manifest = build_shards(_config("voc", voc_root), str(tmp_path / "s"))
    reason = manifest.dropped_classes["cat"]
    assert "1 of each" in reason
    assert {"1 train and 0 test", "0 train and 1 test"} & {reason[:18], reason[:18]}


def test_nothing_left_is_an_error(pairs_root: Path, tmp_path: Path) -> None:
    with pytest.raises(FssError, match="no class has enough of the 12 photos"):
        build_shards(_config("pairs", pairs_root, min_images=50), str(tmp_path / "s"))


def test_limits_are_obeyed(pairs_root: Path, tmp_path: Path) -> None:
    with pytest.raises(FssError, match="no photo could be used; the problems: 12 like"):
        build_shards(_config("pairs", pairs_root, max_pixels=100), str(tmp_path / "s"))


def test_a_split_file_decides(pairs_root: Path, tmp_path: Path) -> None:
    import json

    names = [f"p{i}.jpg" for i in range(9)]
    split = tmp_path / "splits.json"
    split.write_text(json.dumps({"pairs": {"train": names[:6], "test": names[6:]}, "other": {}}))
    config = _config("pairs", pairs_root, split=SplitConfig(file=str(split)))
    manifest = build_shards(config, str(tmp_path / "s"))
    assert manifest.images == {"train": 6, "test": 3}
    assert _reasons(tmp_path / "s")["p9.jpg"][0] == "split"
    with pytest.raises(FssError, match=r"no entry 'nope'.*pairs"):
        build_shards(_config("pairs", pairs_root, split=SplitConfig(file=str(split), key="nope")), str(tmp_path / "t"))
    split.write_text(json.dumps({"pairs": {"train": names, "test": names[:1]}}))
    with pytest.raises(FssError, match=r"p0\.jpg is in train and in test"):
        build_shards(config, str(tmp_path / "u"))


def test_the_drawn_split_does_not_move_when_photos_are_added() -> None:
    from pipelines.data.split import Splitter

    splitter = Splitter(DataConfig(split=SplitConfig(test_fraction=0.3, seed=4)))
    drawn = [splitter(f"{i}.jpg") for i in range(3000)]
    assert 0.26 < drawn.count("test") / 3000 < 0.34
    again = Splitter(DataConfig(split=SplitConfig(test_fraction=0.3, seed=4)))
    assert [again(f"{i}.jpg") for i in range(3000)] == drawn
    assert [Splitter(DataConfig(split=SplitConfig(seed=5)))(f"{i}.jpg") for i in range(3000)] != drawn


def test_published_fold_rules() -> None:
    interleaved, contiguous = DataConfig(), DataConfig(fold_rule="contiguous")
    assert [i for i in range(80) if fold_of(i, 80, interleaved) == 1] == list(range(1, 80, 4))
    assert [i for i in range(20) if fold_of(i, 20, contiguous) == 2] == list(range(10, 15))


def test_a_part_that_is_there_is_not_built_again(tmp_path: Path) -> None:
    """A build that died after its first part goes on from there, and ends with the same hash."""
    from pipelines.data.parquet import parquet_bytes

    out = tmp_path / "s"
    whole = build_shards(_config("shapes"), str(tmp_path / "whole"))
    with pytest.raises(FssError):
        build_shards(_config("shapes", min_images=99), str(out))  # stops after pass 1
    marker = out / "images" / "part-00002.parquet"
    table = pq.read_table(marker)
    marker.write_bytes(parquet_bytes([table.slice(0, 1)], IMAGES))  # recognisable, so that we see it is kept
    before = marker.read_bytes()
    with pytest.raises(FssError):
        build_shards(_config("shapes", min_images=99), str(out))
    assert marker.read_bytes() == before
    marker.unlink()
    import json

    build = out / "build.json"
    rewritten = json.loads(build.read_text()) | {"source_hash": whole.source_hash}
    build.write_text(json.dumps(rewritten))
    assert build_shards(_config("shapes"), str(out)).content_hash == whole.content_hash


def test_real_photos(shared: Path, tmp_path: Path) -> None:
    """COCO's own photos, annotations and published folds; the given hold-out."""
    source = SourceConfig(format="coco", root=str(shared / "data" / "coco_union"))
    split = SplitConfig(file=str(shared / "data" / "splits.json"))
    manifest = build_shards(DataConfig(name="coco", source=source, split=split), str(tmp_path / "s"))
    assert manifest.images == {"train": 401, "test": 148}
    assert manifest.failures == 0
    folds = {c.name: (c.class_id, c.fold) for c in manifest.classes}
    assert folds["person"] == (0, 0)
    assert folds["bicycle"] == (1, 1)
    assert folds["cat"] == (15, 3)
    assert folds["toothbrush"] == (79, 3)
    assert "hair drier" in manifest.dropped_classes
    shards = Shards(str(tmp_path / "s"))
    for row in shards.images("test")[:5]:
        photo = shards.photo(row["image_id"])
        assert photo["image"] == (shared / "data" / "coco_union" / "images" / row["file_name"]).read_bytes()
        assert decode_image(photo["image"]).shape[:2] == (photo["height"], photo["width"])


def test_against_pycocotools_on_real_annotations(shared: Path) -> None:
    """Our masks of real polygons and crowds are pycocotools' own, pixel for pixel."""
    from contextlib import redirect_stdout

    from pycocotools.coco import COCO

    from pipelines.data.open import open_source

    root = shared / "data" / "coco_union"
    source = open_source(SourceConfig(format="coco", root=str(root)))
    with redirect_stdout(io.StringIO()):
        reference = COCO(str(root / "annotations" / "instances.json"))
    for item in source.items[:40]:
        assert item.size is not None
        marks = source.rasterise(item, source.fetch(item), *item.size)
        truth = reference.loadAnns(reference.getAnnIds(imgIds=[item.image_id]))
        assert len(marks.instances) == len(truth)
        for mark, note in zip(marks.instances, truth, strict=True):
            assert np.array_equal(rle.decode(mark.rle, *item.size), reference.annToMask(note).astype(bool))
            assert mark.iscrowd == bool(note["iscrowd"])
