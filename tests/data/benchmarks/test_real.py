"""Real photos: COCO's and VOC's through the general formats, with the benchmarks' class and fold tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from fss_models.errors import FssError
from pipelines.config.data import DataConfig
from pipelines.data.benchmarks import coco, pascal
from pipelines.data.benchmarks.make import make_list
from pipelines.data.benchmarks.protocol import ListRequest
from pipelines.data.published import bind, write_list
from pipelines.data.shards import build_shards
from pipelines.data.shardset import Shards
from tests.data.benchmarks.test_flow import score


def _shards(name: str, kind: str, rule: str, shared: Path, tmp_path: Path) -> Shards:
    given = {"name": name, "source": {"format": kind, "root": str(shared / "data" / name)}, "min_area": 0.0,
             "min_pixels": 2048, "min_images": 1, "fold_rule": rule,
             "split": {"file": str(shared / "data/splits.json")}}
    build_shards(DataConfig.model_validate(given), str(tmp_path / name))
    return Shards(str(tmp_path / name))


@pytest.mark.usefixtures("ray_cluster")
def test_coco_photos_as_coco_20i(shared: Path, tmp_path: Path) -> None:
    shards = _shards("coco_union", "coco", "interleaved", shared, tmp_path)
    assert len(shards.classes) > 60
    for fold in range(4):
        assert set(shards.fold_classes(fold)) <= set(coco.fold_classes(fold))
    assert all(info.name == coco.CLASSES[c] for c, info in shards.classes.items())
    photos = shards.photos_of(0, "test")
    areas = [dict(zip(shards.rows[i]["class_ids"], shards.rows[i]["class_areas"], strict=True))[0] for i in photos]
    assert min(areas) >= 2048
    assert len(photos) > 20
    with pytest.raises(FssError, match=r"class \d+ has [01] images"):
        make_list("coco20i", "hsnet", ListRequest(fold=1, episodes=12, shards=shards.url))
    listed = make_list("coco20i", "drawn", ListRequest(fold=0, episodes=12, shards=shards.url))
    write_list(str(tmp_path / "l.parquet"), listed)
    result = score(shards, str(tmp_path / "l.parquet"), str(tmp_path / "runs"), 0)
    assert (result.episodes, result.list_hash) == (12, listed.sha256)
    published = make_list("coco20i", "hsnet", ListRequest(fold=0, lists=str(shared / "data/lists/coco20i_hsnet")))
    with pytest.raises(FssError, match=r"\d+ of the list's 1782 images are not in"):
        bind(shards, published)


@pytest.mark.usefixtures("ray_cluster")
def test_voc_photos_as_pascal_5i(shared: Path, tmp_path: Path) -> None:
    shards = _shards("voc_train", "voc", "contiguous", shared, tmp_path)
    assert {c: info.name for c, info in shards.classes.items()} == dict(enumerate(pascal.CLASSES))
    for fold in range(4):
        assert shards.fold_classes(fold) == pascal.fold_classes(fold)
    for family in ("hsnet", "bam"):
        listed = make_list("pascal5i", family, ListRequest(fold=2, episodes=10, shards=shards.url))
        for episode in bind(shards, listed):
            assert episode.class_id in shards.rows[episode.query]["class_ids"]
    write_list(str(tmp_path / "l.parquet"), listed)
    assert score(shards, str(tmp_path / "l.parquet"), str(tmp_path / "runs"), 2).episodes == 10
    with pytest.raises(FssError, match=r"\d+ of the list's \d+ images are not in .*first: 2007_000033"):
        bind(shards, make_list("pascal5i", "hsnet", ListRequest(fold=0,
                                                                lists=str(shared / "data/lists/pascal5i_hsnet"))))
