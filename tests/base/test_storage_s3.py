"""`Store` against a real S3 server (SeaweedFS). Mocked S3 would accept what real gateways refuse."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fss_models.errors import FssError
from infra.local.s3 import S3Server, start, stop
from pipelines.base.storage import Store, join
from tests.data.faulty_s3 import faulty_proxy

TABLE = pa.table({"a": list(range(1000)), "b": [b"x" * 100] * 1000})


@pytest.fixture
def store(s3_server: S3Server, request: pytest.FixtureRequest) -> Store:
    """A prefix of the server's bucket that no other test uses."""
    return Store(join(s3_server.url, request.node.name))


def test_write_read_list_delete(store: Store) -> None:
    assert not store.exists()
    assert store.list() == []
    store.write_bytes("a/one.bin", b"1")
    store.write_bytes("a/one.bin", b"11")
    store.write_json("two.json", {"z": 1, "a": [1, 2]})
    assert store.read_bytes("a/one.bin") == b"11"
    assert store.size("a/one.bin") == 2
    assert store.read_json("two.json") == {"a": [1, 2], "z": 1}
    assert store.list() == ["a/one.bin", "two.json"]
    assert store.list("a") == ["a/one.bin"]
    assert store.list(suffix=".json") == ["two.json"]
    assert store.exists("a")
    assert store.exists("a/one.bin")
    assert not store.exists("a/two.bin")
    store.delete("a")
    store.delete("a")
    assert store.list() == ["two.json"]


def test_the_servers_secret_is_for_its_owner_alone(s3_server: S3Server) -> None:
    for name in ("server.json", "identities.json"):
        place = Path(s3_server.folder) / name
        assert s3_server.secret in place.read_text()
        assert place.stat().st_mode & 0o777 == 0o600


def test_listing_shows_what_another_writer_has_just_written(store: Store, s3_server: S3Server) -> None:
    """Catches a cached listing, which would make a resumed job do work twice."""
    assert store.list() == []
    other = fsspec.filesystem("s3", key=s3_server.key, secret=s3_server.secret, endpoint_url=s3_server.endpoint,
                              skip_instance_cache=True, use_listings_cache=False)
    other.pipe_file(f"{store.url}/new.bin", b"1")
    assert store.list() == ["new.bin"]
    assert store.exists("new.bin")


def test_tables_by_either_library(store: Store) -> None:
    store.write_table("t.parquet", TABLE, row_group_size=250)
    assert store.read_table("t.parquet", columns=["a"]).column("a").to_pylist() == list(range(1000))
    with store.open_parquet("t.parquet") as file:
        assert file.num_row_groups == 4
        assert file.read_row_group(3)["a"][0].as_py() == 750
    fs, path = store.pyarrow()
    assert pq.read_table(f"{path}/t.parquet", filesystem=fs).equals(TABLE)
    pq.write_table(pa.table({"big": [bytes(12_000_000)]}), f"{path}/big.parquet", filesystem=fs, compression="none")
    assert store.size("big.parquet") > 12_000_000  # a multipart upload, which a server without identities refuses


def test_a_store_travels_to_another_process(store: Store) -> None:
    import pickle

    store.write_bytes("x", b"1")
    assert pickle.loads(pickle.dumps(store)).read_bytes("x") == b"1"


@pytest.mark.parametrize("call", ["read_bytes", "read_json", "read_table", "open_parquet", "size"])
def test_missing_object(store: Store, call: str) -> None:
    with pytest.raises(FssError, match="does not exist") as error:
        getattr(store, call)("nothing/here")
    assert f"{store.url}/nothing/here" in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSS_STORAGE_ATTEMPTS", "1")
    store = Store("s3://no-such-bucket/x")
    for call in (lambda: store.read_bytes("y"), lambda: store.write_bytes("y", b"1")):
        with pytest.raises(FssError, match="does not exist") as error:
            call()
        assert "no-such-bucket" in str(error.value)
    assert store.list() == []


@pytest.mark.parametrize(("variable", "value"), [("AWS_SECRET_ACCESS_KEY", "wrong"), ("AWS_ACCESS_KEY_ID", "nobody")])
def test_wrong_credentials(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    """Also without FSS_STORAGE_ATTEMPTS: a refusal is final, retrying it would only waste a minute."""
    monkeypatch.setenv(variable, value)
    for call in (lambda s: s.read_bytes("y"), lambda s: s.write_bytes("y", b"1"), lambda s: s.list(),
                 lambda s: s.exists("y")):
        began = time.monotonic()
        with pytest.raises(FssError, match="refuses the credentials") as error:
            call(Store(join(s3_server.url, "private")))
        assert time.monotonic() - began < 5
        assert "AWS_SECRET_ACCESS_KEY" in str(error.value)


def test_no_credentials(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(FssError, match="credentials") as error:
        Store(s3_server.url).write_bytes("y", b"1")
    assert "AWS_ACCESS_KEY_ID" in str(error.value)


def test_unreachable_endpoint(monkeypatch: pytest.MonkeyPatch, s3_server: S3Server) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("FSS_STORAGE_ATTEMPTS", "1")
    with pytest.raises(FssError, match=r"cannot reach http://127\.0\.0\.1:9") as error:
        Store("s3://fss/x").read_bytes("y")
    assert "AWS_ENDPOINT_URL" in str(error.value)
    assert "\n" not in str(error.value)


def test_two_servers_at_once(s3_server: S3Server, tmp_path: Path) -> None:
    """Catches a fixed port: the second server would not come up, or take over the first one's clients."""
    other = start(tmp_path, bucket="second")
    try:
        assert not set(other.ports.values()) & set(s3_server.ports.values())
        fs = fsspec.filesystem("s3", key=other.key, secret=other.secret, endpoint_url=other.endpoint)
        assert fs.ls("") == ["second"]
        assert start(tmp_path).pid == other.pid  # starting it again finds it running
    finally:
        assert stop(tmp_path, kill=True)
    assert not stop(tmp_path)


@pytest.mark.slow
def test_writes_and_reads_outlive_an_outage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is killed and comes back six seconds later; the calls in hand wait for it."""
    server = start(tmp_path)
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    try:
        store = Store(join(server.url, "x"), attempts=10)
        store.write_bytes("kept", b"1")
        stop(tmp_path, kill=True)
        back = threading.Timer(6, start, (tmp_path,))
        back.start()
        began = time.monotonic()
        store.write_bytes("late", b"2")
        assert time.monotonic() - began > 5
        assert store.read_bytes("late") == b"2"
        assert store.read_bytes("kept") == b"1"
        back.join()
    finally:
        stop(tmp_path, kill=True)


@pytest.mark.slow
def test_a_streamed_file_outlives_an_outage(store: Store, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an output of many megabytes that is given up with one of its parts."""
    piece = bytes(range(256)) * 40_000
    with faulty_proxy(s3_server.endpoint, every=10**9) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        with Store(store.url).stream("large.bin") as out:
            proxy.away = True
            threading.Timer(8, setattr, (proxy, "away", False)).start()
            for _ in range(6):
                out.write(piece)
        assert proxy.failed["refused"] > 0
        assert store.read_bytes("large.bin") == 6 * piece
