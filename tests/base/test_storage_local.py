"""`Store` on a local folder: nothing half-written is ever seen, and a full disk is one clear line."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pytest

from fss_models.errors import FssError
from pipelines.base.storage import Store, join


def test_write_read_list_delete(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "deep" / "down"))
    assert not store.exists()
    assert store.list() == []
    store.write_bytes("a/one.bin", b"1")
    store.write_json("two.json", {"z": 1})
    store.write_table("t.parquet", pa.table({"a": [1, 2]}))
    assert store.read_bytes("a/one.bin") == b"1"
    assert store.size("a/one.bin") == 1
    assert store.read_json("two.json") == {"z": 1}
    assert store.read_table("t.parquet", columns=["a"]).column("a").to_pylist() == [1, 2]
    assert store.list() == ["a/one.bin", "t.parquet", "two.json"]
    store.delete("a")
    store.delete("a")
    assert store.list() == ["t.parquet", "two.json"]


def test_file_urls_and_unknown_schemes(tmp_path: Path) -> None:
    Store(f"file://{tmp_path}").write_bytes("x", b"1")
    assert (tmp_path / "x").read_bytes() == b"1"
    with pytest.raises(FssError, match="unsupported URL 'ftp://b'"):
        Store("ftp://b")
    with pytest.raises(FssError, match="'~nobody-at-all' has no home folder"):
        Store("~nobody-at-all/x")


@pytest.mark.parametrize(("url", "parent", "name"), [
    ("/a/b.json", "/a", "b.json"), ("/b.json", "/", "b.json"), ("/a/b/", "/a", "b"), ("file:///a/b", "/a", "b"),
    ("b.json", ".", "b.json"), ("~/b.json", "~", "b.json"), ("s3://bucket/a/b.json", "s3://bucket/a", "b.json"),
    ("s3://bucket/a/", "s3://bucket", "a"), ("s3://bucket", "s3://", "bucket"),
])  # fmt: skip
def test_the_place_of_a_file(url: str, parent: str, name: str) -> None:
    assert (Store(url).parent.url, Store(url).name) == (Store(parent).url, name)


def test_a_store_of_one_file(tmp_path: Path) -> None:
    file = Store(str(tmp_path / "new" / "one.json"))
    assert not file.exists()
    file.write_json("", {"a": 1})
    assert file.exists()
    assert file.read_json() == file.parent.read_json("one.json") == {"a": 1}
    assert file.path() == file.parent.path("one.json")


def test_readers_see_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    """Catches a write in place: a reader would meet a shorter file."""
    store, sizes, stop = Store(str(tmp_path)), set(), threading.Event()
    store.write_bytes("x", b"a" * 3_000_000)

    def read() -> None:
        while not stop.is_set():
            sizes.add(len(store.read_bytes("x")))

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(40):
        store.write_bytes("x", b"b" * (3_000_000 + i % 2))
    stop.set()
    reader.join()
    assert sizes <= {3_000_000, 3_000_001}


def test_killed_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    """SIGKILL in the middle of a write: the old content stays, and the left-over is in no listing."""
    store = Store(str(tmp_path))
    store.write_bytes("x", b"old")
    code = ("import os, signal; from pipelines.base import storage;"
            "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL);"
            f"storage.Store({str(tmp_path)!r}).write_bytes('x', b'new')")
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -9
    assert store.read_bytes("x") == b"old"
    assert store.list() == ["x"]


def test_full_disk(full_disk: Path) -> None:
    store = Store(str(full_disk))
    store.write_bytes("x", b"old")
    with pytest.raises(FssError, match="no space left on the device") as error:
        store.write_bytes("x", bytes(3_000_000))
    assert str(full_disk / "x") in str(error.value)
    assert "\n" not in str(error.value)
    assert store.read_bytes("x") == b"old"
    assert [p.name for p in full_disk.iterdir()] == ["x"]  # no part is left to fill the disk further
    store.write_bytes("y", bytes(500_000))


@pytest.mark.parametrize("call", ["read_bytes", "read_json", "read_table", "open_parquet", "size"])
def test_missing_file(tmp_path: Path, call: str) -> None:
    with pytest.raises(FssError, match="does not exist") as error:
        getattr(Store(str(tmp_path)), call)("nothing/here")
    assert join(str(tmp_path), "nothing/here") in str(error.value)


def test_broken_json_and_parquet_name_the_file(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write_bytes("bad", b"{")
    for call in (store.read_json, store.read_table, store.open_parquet):
        with pytest.raises(FssError, match="is not") as error:
            call("bad")
        assert str(tmp_path / "bad") in str(error.value)


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"1")
    with pytest.raises(FssError) as error:
        Store(str(tmp_path)).write_bytes("x/y", b"1")
    assert str(tmp_path / "x/y") in str(error.value)
