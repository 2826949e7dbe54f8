"""Where files may be, and how credentials are found: profiles and roles, without keys in the environment."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from importlib.util import find_spec
from pathlib import Path

import pytest

from fss_models.errors import FssError
from infra.local.s3 import S3Server, start, stop
from pipelines.base.files import OutOfOrderError, files_below, iter_files
from pipelines.base.storage import Store
from tests.web import Quiet, serving

NAMES = ["B.jpg", "a-b/y.jpg", "a.jpg", "a/b.jpg", "a/b/c.jpg", "a/x.jpg", "a0.jpg", "é/1.jpg"]

ASSUMED = """<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
<AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>{key}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey>
<SessionToken></SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration></Credentials>
</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"""


def filled(url: str) -> Store:
    store = Store(url)
    for name in [*reversed(NAMES), "a/.tmp-1.jpg", "__MACOSX/1.jpg"]:
        store.write_bytes(name, name.encode())
    return store


def check_order(store: Store, **how: bool) -> None:
    assert [one.path for one in iter_files(store, **how)] == NAMES
    assert [one.path for one in iter_files(store, prefix="a/", after="a/b.jpg", **how)] == ["a/b/c.jpg", "a/x.jpg"]
    assert [one.path for one in iter_files(store, after="a/b/c.jpg", **how)] == NAMES[5:]


@contextmanager
def answering(answer: str) -> Iterator[str]:
    """The address of a server that gives every request the same answer."""
    class Handler(Quiet, BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer.encode())

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

    with serving(Handler) as url:
        yield url


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_files_come_in_the_order_of_their_paths(kind: str, tmp_path: Path) -> None:
    store = filled(str(tmp_path) if kind == "local" else "memory://order/p")
    check_order(store)
    assert list(files_below(store)) == NAMES


def test_a_filesystem_of_fsspec() -> None:
    """What gs:// and az:// have in common: fsspec's interface, here its own filesystem in memory."""
    store = Store("memory://box/p")
    store.write_json("a/b.json", {"c": 1})
    with store.stream("big") as out:
        out.write(b"1" * 1000)
    with pytest.raises(TypeError), store.stream("half") as out:
        out.write("no bytes")  # type: ignore[call-overload]
    assert store.list() == ["a/b.json", "big"]
    assert (store.read_json("a/b.json"), store.size("big"), store.read_range("big", 5, 9)) == ({"c": 1}, 1000, b"1111")
    filesystem, path = store.pyarrow()
    assert filesystem.get_file_info(f"{path}/big").size == 1000
    assert (store.parent.url, store.name) == ("memory://box", "p")
    with pytest.raises(FssError, match="does not exist"):
        store.read_bytes("gone")


@pytest.mark.parametrize(("url", "package", "extra"), [("gs://b/x", "gcsfs", "gcs"), ("az://b/x", "adlfs", "azure")])
def test_what_is_missing_is_named(url: str, package: str, extra: str) -> None:
    if find_spec(package):
        pytest.skip(f"{package} is installed")
    with pytest.raises(FssError, match=rf"needs the package {package} \(pip install 'fss\[{extra}\]'\)"):
        Store(url).read_bytes("y")


def test_a_store_that_keeps_folders_is_listed_by_them(s3_server: S3Server) -> None:
    """SeaweedFS lists `a/x` before `a.jpg`: would catch photos with other ids than those of their sorted names."""
    store = filled("s3://fss/order")
    with pytest.raises(OutOfOrderError):
        list(iter_files(store))
    check_order(store, by_folder=True)
    assert list(files_below(store)) == NAMES


def test_roles_and_profiles(s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys from a profile, from the role of a machine or container, and from a web identity; none is a variable."""
    for name in s3_server.env:
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text(
        f"[profile own]\nregion = us-east-1\nendpoint_url = {s3_server.endpoint}\n"
        f"aws_access_key_id = {s3_server.key}\naws_secret_access_key = {s3_server.secret}\n"
        f"[profile bare]\nservices = mine\n[services mine]\ns3 =\n  endpoint_url = {s3_server.endpoint}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    named = Store("s3://own@fss/roles")
    named.write_bytes("x", b"1")
    assert (named.list(), named.parent.url, named.path("x")) == (["x"], "s3://own@fss", "s3://own@fss/roles/x")
    with named.stream("y") as out:
        out.write(b"2")
    filesystem, path = named.pyarrow()
    assert filesystem.get_file_info(f"{path}/y").size == 1
    with pytest.raises(FssError, match="there is no AWS profile 'other'"):
        Store("s3://other@fss/roles").list()
    monkeypatch.setenv("AWS_PROFILE", "own")
    assert Store("s3://fss/roles").read_bytes("x") == b"1"
    filesystem, path = Store("s3://fss/roles").pyarrow()
    assert filesystem.get_file_info(f"{path}/y").size == 1
    monkeypatch.setenv("AWS_PROFILE", "bare")
    with pytest.raises(FssError, match="there are no credentials"):
        Store("s3://fss/roles").read_bytes("x")
    monkeypatch.delenv("AWS_PROFILE")

    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_server.endpoint)
    role = {"AccessKeyId": s3_server.key, "SecretAccessKey": s3_server.secret, "Token": "",
            "Expiration": "2099-01-01T00:00:00Z"}
    with answering(json.dumps(role)) as address:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", address)
        monkeypatch.setenv("AWS_REGION", "eu-west-1")  # another connection than the ones above
        assert Store("s3://fss/roles").read_bytes("x") == b"1"
        monkeypatch.delenv("AWS_CONTAINER_CREDENTIALS_FULL_URI")
    (tmp_path / "token").write_text("of the cluster")
    with answering(ASSUMED.format(key=s3_server.key, secret=s3_server.secret)) as address:
        for name, value in {"AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "token"), "AWS_ENDPOINT_URL_STS": address,
                            "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/reader", "AWS_REGION": "eu-west-2"}.items():
            monkeypatch.setenv(name, value)
        assert Store("s3://fss/roles").read_bytes("x") == b"1"


def test_two_stores_at_once(s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Photos in one store and results in another, with other keys, in one process."""
    other = start(tmp_path / "other", bucket="results")
    try:
        (tmp_path / "config").write_text(
            f"[profile other]\nendpoint_url = {other.endpoint}\naws_access_key_id = {other.key}\n"
            f"aws_secret_access_key = {other.secret}\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        here, there = Store("s3://fss/two"), Store("s3://other@results/two")
        here.write_bytes("photo", b"1")
        there.write_bytes("label", b"2")
        assert (here.list(), there.list()) == (["photo"], ["label"])
        with pytest.raises(FssError, match="does not exist"):
            Store("s3://results/two").read_bytes("label")
    finally:
        stop(tmp_path / "other", kill=True)
