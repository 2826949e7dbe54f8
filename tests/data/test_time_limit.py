"""Photos whose decoder or file never answers: they fail by name, and their part is built."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from pipelines.base.storage import Store
from pipelines.config.data import DataConfig
from pipelines.data.open import open_source
from pipelines.data.parts import PartBuilder
from pipelines.data.shards import build_shards
from pipelines.data.shardset import Shards
from tests.data import exports
from tests.data.conftest import scan_bomb, write


def config(root: Path, seconds: int) -> DataConfig:
    return DataConfig.model_validate({
        "name": "d", "source": {"format": "pairs", "root": str(root)}, "min_images": 1, "min_area": 0.0,
        "max_seconds": seconds, "split": {"test_fraction": 0.5}})


def test_photos_that_never_end_fail_and_the_part_is_built(tmp_path: Path) -> None:
    """One is decoded for minutes, the other has become a pipe that nobody writes, as a dead mount would block."""
    root, out = tmp_path / "in", tmp_path / "out"
    exports.pairs(root)
    write(root, f"images/{exports.name(1)}", scan_bomb(2000, 20_000))
    cfg = config(root, seconds=2)
    source = open_source(cfg.source)
    pipe = root / "images" / exports.name(4)
    pipe.unlink()
    os.mkfifo(pipe)
    builder = PartBuilder(source=source, cfg=cfg, out=str(out))
    row = (0, [(item, "train") for item in source.items])
    codes = []
    while 0 not in codes and len(codes) < 9:
        worker = multiprocessing.get_context("spawn").Process(target=builder, args=(row,))
        worker.start()
        worker.join(120)
        codes.append(worker.exitcode)
    assert codes == [1, 1, 1, 1, 1, 0], "the first is unnamed, two more name each photo"
    store = Store(str(out))
    failures = store.read_table("build/failures-00000.parquet").to_pylist()
    assert [f["file_name"] for f in failures] == [exports.name(1), exports.name(4)]
    assert all("took longer than 2 s (data.max_seconds)" in f["reason"] for f in failures)
    assert store.read_table("images/part-00000.parquet").num_rows == exports.PHOTOS - 2


@pytest.mark.slow
def test_a_build_goes_on_after_a_photo_that_never_ends(tmp_path: Path) -> None:
    """On a real cluster: Ray starts the part again after its worker has ended itself."""
    root = tmp_path / "in"
    exports.pairs(root)
    write(root, f"images/{exports.name(1)}", scan_bomb(2000, 20_000))
    manifest = build_shards(config(root, seconds=3), str(tmp_path / "out"))
    assert sum(manifest.images.values()) == exports.PHOTOS - 1
    assert Shards(str(tmp_path / "out")).failures["file_name"].to_pylist() == [exports.name(1)]


def test_the_limit_is_no_part_of_what_older_versions_recorded(tmp_path: Path) -> None:
    assert "max_seconds" not in config(tmp_path, seconds=60).model_dump()
    assert config(tmp_path, seconds=61).model_dump()["max_seconds"] == 61
