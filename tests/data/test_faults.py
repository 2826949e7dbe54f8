"""Faults of the shard build and of its readers: failing storage, killed workers, damaged files, other schemas."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem

from fss_models.errors import FssError
from infra.local.s3 import S3Server
from pipelines.base.storage import Store, join
from pipelines.base.workspace import Workspace
from pipelines.config.data import DataConfig
from pipelines.data.attempts import forget_attempts
from pipelines.data.open import open_source
from pipelines.data.parts import PartBuilder, part_name
from pipelines.data.schema import SCHEMA_VERSION, EpisodeSample
from pipelines.data.shards import build_shards
from pipelines.data.shardset import Shards
from pipelines.data.stream import EpisodeStream
from tests.data import exports
from tests.data.conftest import write
from tests.data.faulty_s3 import KINDS, FaultyProxy, faulty_proxy
from tests.data.test_command import _built, _command

SMALL = ["data.source.images=60", "data.source.side=64", "data.split.test_fraction=0.4", "data.min_images=1",
         "data.images_per_part=6", "data.block_size=4"]


def _batches(url: str, count: int) -> list[list[EpisodeSample]]:
    with EpisodeStream(url, classes=list(Shards(url).classes), batch=4, seed=1) as stream:
        return list(islice(stream, count))


def _same(one: list[list[EpisodeSample]], other: list[list[EpisodeSample]]) -> None:
    for a, b in zip((s for batch in one for s in batch), (s for batch in other for s in batch), strict=True):
        assert a.class_id == b.class_id
        for x, y in zip((*a.references, *a.targets), (*b.references, *b.targets), strict=True):
            assert x.image_id == y.image_id
            assert np.array_equal(x.image, y.image)
            assert np.array_equal(x.mask, y.mask)


# ---- storage that fails a tenth of the time -----------------------------------------------------------------------

def _through(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)


@pytest.mark.slow
def test_a_tenth_of_the_requests_fails_and_the_content_is_the_same(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """503, 504, dropped and torn answers, and one that hangs for longer than the client waits."""
    local = _built(tmp_path, *SMALL)
    with faulty_proxy(s3_server.endpoint, hang_s=75) as proxy:
        _through(proxy, monkeypatch)
        began = time.monotonic()
        built = _built(f"{s3_server.url}/faults/ws", *SMALL)
        seconds = time.monotonic() - began
        asked, failed = proxy.requests, proxy.failed.copy()
        assert built["content_hash"] == local["content_hash"]
        _same(_batches(built["shards"], 60), _batches(local["shards"], 60))
        reading = proxy.failed - failed
        print(f"build: {failed.total()} of {asked} requests failed ({dict(failed)}), {seconds:.0f} s, content "
              f"{built['content_hash'][:16]}; stream: {reading.total()} of {proxy.requests - asked} ({dict(reading)})")
    assert failed["hung"] == 1
    assert set(KINDS) <= failed.keys()
    assert failed.total() >= asked // 10
    assert reading.total() >= 3


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_failure_is_outlived(kind: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads, writes, listings, and a row group whose read fails four times in a row: botocore repeats a request once,
    and s3fs never one that was answered with 503 and not SlowDown.
    """
    import pyarrow as pa

    table = pa.table({"a": list(range(1000)), "b": [os.urandom(500) for _ in range(1000)]})
    with faulty_proxy(s3_server.endpoint, kinds=(kind,)) as proxy:
        _through(proxy, monkeypatch)
        store = Store(join(s3_server.url, f"faults-{KINDS.index(kind)}"))
        store.write_table("t.parquet", table, row_group_size=100)
        for number in range(5):
            store.write_bytes(f"x{number}", bytes([number]) * 1000)
        assert [store.read_bytes(f"x{n}") for n in range(5)] == [bytes([n]) * 1000 for n in range(5)]
        with store.open_parquet("t.parquet") as file:
            proxy.due = 4
            assert file.read_row_group(0).equals(table.slice(0, 100))
            assert not proxy.due
        assert len(store.list()) == 6
        print(f"{proxy.failed.total()} of {proxy.requests} requests failed: {kind}")
        assert proxy.failed[kind] >= 5


# ---- a worker that is killed --------------------------------------------------------------------------------------

@pytest.mark.slow
def test_a_killed_worker_costs_nothing_but_time(tmp_path: Path) -> None:
    """kill -9 on Ray's workers in the middle of a build: it goes on by itself and ends with the same content."""
    settings = ["data.source.images=400", "data.images_per_part=10", "data.source.side=192"]
    whole = _built(tmp_path / "whole", *settings)
    images = Path(Workspace(str(tmp_path / "hit")).shards("shapes")) / "images"
    process = subprocess.Popen(_command(tmp_path / "hit", *settings), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True)
    killed = 0
    limit = time.monotonic() + 180
    for parts in (3, 12):
        while len(list(images.glob("part-*.parquet"))) < parts:
            assert process.poll() is None, "the build ended before a worker could be killed"
            assert time.monotonic() < limit
            time.sleep(0.05)
        for child in psutil.Process(process.pid).children(recursive=True):
            if child.name().startswith("ray::") and not child.name().startswith(("ray::Dashboard", "ray::IDLE",
                                                                                 "ray::RuntimeEnv", "ray::_Stats")):
                os.kill(child.pid, signal.SIGKILL)
                killed += 1
    out, err = process.communicate(timeout=300)
    print(f"{killed} workers killed; status {process.returncode}")
    assert killed >= 2
    assert process.returncode == 0, err
    assert json.loads(out)["content_hash"] == whole["content_hash"]
    assert not list((tmp_path / "hit").rglob(".tmp-*.parquet"))


# ---- damaged files ------------------------------------------------------------------------------------------------

def _flip(path: Path, at: float) -> None:
    """Change one bit at a share of the file's length."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 4
    path.write_bytes(bytes(data))


def _cut(path: Path, at: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * at)])


@pytest.fixture
def copy(shapes_shards: str, tmp_path: Path) -> Path:
    """Shards that may be damaged."""
    shutil.copytree(shapes_shards, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize("damage", [_flip, _cut])
@pytest.mark.parametrize("at", [0.1, 0.5, 0.8])
def test_a_damaged_part_is_named_with_its_hash(damage: Callable[[Path, float], None], at: float, copy: Path) -> None:
    """One bit within a photo's own bytes is enough: the photo would decode to something else, or not at all."""
    name = "images/part-00001.parquet"
    damage(copy / name, at)
    shards = Shards(str(copy))
    with pytest.raises(FssError) as error:
        list(map(shards.photo, shards.rows))
    message = str(error.value)
    print(message)
    assert str(copy / name) in message
    assert shards.manifest.files[name][:16] in message
    assert "build the shards again with --force" in message
    assert "\n" not in message


def test_a_damaged_block_is_named_with_its_hash_by_the_stream(copy: Path) -> None:
    blocks = sorted((copy / "blocks" / "train").glob("class-*.parquet"))
    for block in blocks:
        _flip(block, 0.5)
    hashes = Shards(str(copy)).manifest.files
    with pytest.raises(FssError) as error:
        _batches(str(copy), 200)
    print(error.value)
    assert any(str(b) in str(error.value) and hashes[f"blocks/train/{b.name}"][:16] in str(error.value) for b in blocks)


@pytest.mark.parametrize("name", ["index.parquet", "failures.parquet", "blocks/train/index.parquet"])
def test_a_damaged_table_is_named(name: str, copy: Path) -> None:
    _flip(copy / name, 0.1)
    shards = Shards(str(copy))
    with pytest.raises(FssError, match="is not a readable Parquet file") as error:
        _ = (shards.index, shards.failures, shards.block_index)
    assert str(copy / name) in str(error.value)


# ---- other schemas ------------------------------------------------------------------------------------------------

def _manifest(folder: Path, **over: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | over))


def test_shards_of_a_newer_schema_are_refused(copy: Path, shapes_config: DataConfig) -> None:
    """Also where its manifest has fields that this program does not know, and by a build."""
    newer = SCHEMA_VERSION + 1
    _manifest(copy, schema_version=newer, tiles={"of": "the future"}, source_hash="x")
    for call in (lambda: Shards(str(copy)), lambda: build_shards(shapes_config, str(copy), update=True)):
        with pytest.raises(FssError, match=f"shards have schema {newer}, this program reads up to") as error:
            call()
        print(error.value)
        assert str(copy) in str(error.value)
        assert "update fss" in str(error.value)


def test_shards_of_schema_1_are_read(copy: Path, shapes_shards: str, shapes_config: DataConfig) -> None:
    """As they were: no crop, no ledger, no checksums. A build brings them up to date."""
    for file in [*copy.glob("images/*.parquet"), *copy.glob("blocks/train/class-*.parquet")]:
        opened = pq.ParquetFile(file)
        groups = [opened.read_row_group(g).drop_columns("crop") for g in range(opened.num_row_groups)]
        with pq.ParquetWriter(file, groups[0].schema) as writer:
            for group in groups:
                writer.write_table(group, row_group_size=len(group))
    (copy / "ledger.parquet").unlink()
    (copy / "build.json").unlink()
    document = json.loads((copy / "manifest.json").read_text())
    del document["source"]["max_side"]
    _manifest(copy, schema_version=1, source=document["source"], source_hash="of schema 1")
    old, new = Shards(str(copy)), Shards(shapes_shards)
    for image_id, row in islice(old.rows.items(), 20):
        for class_id in row["class_ids"]:
            assert np.array_equal(old.sample(image_id, class_id).mask, new.sample(image_id, class_id).mask)
    _same(_batches(str(copy), 20), _batches(shapes_shards, 20))
    with pytest.raises(FssError, match="changed since these shards were built"):
        build_shards(shapes_config, str(copy))
    assert build_shards(shapes_config, str(copy), update=True).content_hash == new.manifest.content_hash
    manifest = Shards(str(copy)).manifest
    assert manifest.schema_version == SCHEMA_VERSION
    assert len([name for name in manifest.files if name.startswith("images/")]) == 4  # the old ones stay for readers


# ---- a source that fails ------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_own_data_on_failing_storage(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The new readers' photos, label files and row groups come through as well."""
    settings = ["data.min_images=1", "data.folds=1", "data.split.test_fraction=0.5", "data.split.seed=3"]
    for kind, make in {"yolo": exports.yolo, "table": exports.table}.items():
        make(tmp_path / kind)
        source = f"{s3_server.url}/own/{kind}"
        for file in (p for p in (tmp_path / kind).rglob("*") if p.is_file()):
            Store(source).write_bytes(str(file.relative_to(tmp_path / kind)), file.read_bytes())
        of = [*settings, f"data.name={kind}", f"data.source.format={kind}"]
        local = _built(tmp_path / "ws", *of, f"data.source.root={tmp_path / kind}")
        with faulty_proxy(s3_server.endpoint) as proxy:
            with monkeypatch.context() as patch:
                _through(proxy, patch)
                remote = _built(f"{s3_server.url}/own/ws", *of, f"data.source.root={source}")
            print(f"{kind}: {proxy.failed.total()} of {proxy.requests} requests failed")
            assert proxy.failed.total() >= 3
        assert remote["content_hash"] == local["content_hash"]
        assert remote["failures"] == local["failures"] == 0


def test_a_source_file_that_goes_away_is_a_row(tmp_path: Path, ray_cluster: object) -> None:
    """Between the listing and the read."""
    exports.yolo(tmp_path / "in")
    write(tmp_path, "s.json", json.dumps({"in": {"train": [exports.name(i) for i in range(4)],
                                                 "test": [exports.name(i) for i in range(4, 8)]}}))
    config = DataConfig.model_validate({
        "name": "y", "source": {"format": "yolo", "root": str(tmp_path / "in")}, "min_images": 1, "folds": 1,
        "split": {"file": str(tmp_path / "s.json")}})
    with pytest.MonkeyPatch.context() as patch:
        from pipelines.data.sources.yolo import YoloSource

        refuse = YoloSource._refuse_boxes

        def go_away(self: YoloSource) -> None:
            refuse(self)
            (tmp_path / "in" / "images" / "train" / exports.name(0)).unlink()
        patch.setattr(YoloSource, "_refuse_boxes", go_away)
        build_shards(config, str(tmp_path / "out"))
    rows = Shards(str(tmp_path / "out")).failures.to_pylist()
    assert [(Path(r["file_name"]).name, r["stage"], r["reason"]) for r in rows] == [
        (exports.name(0), "read", "does not exist")]


@pytest.mark.parametrize("lost", ["removed", "unmounted", errno.EIO, errno.ESTALE, errno.ENOTCONN])
def test_a_source_that_goes_away_stops_its_part(
    lost: str | int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its photos would be failures for ever. Once it is back, the part is built with all of them."""
    root, aside = tmp_path / "in", tmp_path / "aside"
    exports.pairs(root)
    cfg = DataConfig.model_validate({"name": "d", "source": {"format": "pairs", "root": str(root)}})
    source, out = open_source(cfg.source), Store(str(tmp_path / "out"))
    build = PartBuilder(source=source, cfg=cfg, out=out.url)
    planned = (0, [(item, "train") for item in source.items])
    with monkeypatch.context() as patch:
        if isinstance(lost, int):
            def fail(*_: object) -> bytes:
                raise OSError(lost, os.strerror(lost))
            patch.setattr(LocalFileSystem, "cat_file", fail)
        else:
            root.rename(aside)
        if lost == "unmounted":
            root.mkdir()
        with pytest.raises(FssError, match=r"the source was lost .*\(bring it back and run the command again") as error:
            build(planned)
    assert str(root) in str(error.value)
    assert not out.exists(part_name(0))
    if aside.exists():
        aside.replace(root)
    forget_attempts(out)
    build(planned)
    assert out.read_table(part_name(0)).num_rows == len(source.items) == exports.PHOTOS


def test_an_unreadable_photo_is_a_row(tmp_path: Path) -> None:
    exports.pairs(tmp_path / "in")
    cfg = DataConfig.model_validate({"name": "d", "source": {"format": "pairs", "root": str(tmp_path / "in")}})
    source, out = open_source(cfg.source), Store(str(tmp_path / "out"))
    photo = tmp_path / "in" / source.items[0].path
    photo.unlink()
    photo.mkdir()
    PartBuilder(source=source, cfg=cfg, out=out.url)((0, [(item, "train") for item in source.items]))
    assert out.read_table("build/failures-00000.parquet")["stage"].to_pylist() == ["read"]
