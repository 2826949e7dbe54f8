"""What --images may be: patterns, lists of URLs and tar files; bad lists are told in one line and counted."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fss_models.errors import FssError
from pipelines.base.storage import Store
from pipelines.inference.labeler import Labeler
from pipelines.inference.masks import PhotoFailure
from pipelines.inference.support_files import read_support_file
from pipelines.labelling import listing, photo_reader
from pipelines.labelling.images import PhotoReader, keep_unread, kept_images, left_out, list_images
from pipelines.labelling.inputs import ListColumns, expand_braces
from pipelines.labelling.job import LabellingJob
from pipelines.labelling.listing import ImageList, read_listing
from pipelines.labelling.outputs import summary_line, write_outputs
from pipelines.labelling.photo_reader import read_photo
from tests.labelling.helpers import DirectEngine, make_job
from tests.labelling.object_lists import object_lists
from tests.labelling.test_images import made
from tests.serving.helpers import photo_folder, supports_file
from tests.web import Quiet, serving


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """The address of a web server for the files of a folder `web`; some hosts of the world are like /gone and /busy."""
    class Handler(Quiet, BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            place = tmp_path / "web" / path.lstrip("/")
            status = 503 if path == "/busy.jpg" else 200 if place.is_file() else 404
            self.send_response(status)
            if path == "/damaged.jpg":
                self.send_header("Content-Encoding", "gzip")
            self.end_headers()
            self.wfile.write(place.read_bytes() if status == 200 else b"")

    with serving(Handler) as url:
        yield url


def read_all(images: ImageList, max_bytes: int = 10**6) -> list[bytes | PhotoFailure]:
    reader = PhotoReader(images, max_bytes=max_bytes, threads=4)
    try:
        return reader.read(range(len(images)))
    finally:
        reader.close()


def packed(place: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(place, "w") as tar:
        for name, data in files.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    return place


def test_patterns(tmp_path: Path) -> None:
    made(tmp_path, "a/1.jpg", "a/2.png", "a/x/3.jpg", "b/4.jpg", "b/n.txt", "[c]/5.jpg")
    names = {pattern: list(list_images(f"{tmp_path}/{pattern}").names) for pattern in (
        "a/*.jpg", "**/*.jpg", "{a,b}/*", "?/4.jpg", "[c]")}
    assert names == {"a/*.jpg": ["1.jpg"], "**/*.jpg": ["[c]/5.jpg", "a/1.jpg", "a/x/3.jpg", "b/4.jpg"],
                     "{a,b}/*": ["a/1.jpg", "a/2.png", "b/4.jpg"], "?/4.jpg": ["b/4.jpg"],
                     "[c]": ["5.jpg"]}  # a folder of that name
    assert expand_braces("s-{08..11}.{tar,x}") == [f"s-{n}.{end}" for n in ("08", "09", "10", "11")
                                                   for end in ("tar", "x")]
    with pytest.raises(FssError, match="holds no photos"):
        list_images(f"{tmp_path}/*.gif")
    with pytest.raises(FssError, match="a bucket's name cannot be a pattern"):
        list_images("s3://photos-*/a")


def test_a_list_keeps_its_order_and_ids(tmp_path: Path) -> None:
    photos = made(tmp_path / "p", "b.jpg", "a.jpg")
    (tmp_path / "l.csv").write_text(
        f"\ufeffid,url\n007,p/b.jpg\n8,{photos}/a.jpg\n9,p/b.jpg\n10,\n11,ftp://x/y.jpg\n12,p/gone.jpg\n")
    images = list_images(str(tmp_path / "l.csv"))
    found = [images.photo(row) for row in range(len(images))]
    assert [p.source_id for p in found] == ["007", "8", "12"]
    assert [p.name for p in found] == ["p/b.jpg", f"{photos}/a.jpg".lstrip("/"), "p/gone.jpg"]
    assert left_out(images) == ["the list has 6 rows; left out: 1 have a URL that cannot be read, 1 have no URL, "
                                "1 repeat a URL"]
    read = read_all(images)
    assert read[:2] == [b"1", b"1"]
    assert isinstance(read[2], PhotoFailure)
    pq.write_table(pa.table({"place": ["p/b.jpg"], "key": [5]}), tmp_path / "l.parquet")
    two = list_images(str(tmp_path / "l.parquet"), columns=ListColumns(url="place", id="key"))
    assert two.photo(0).source_id == "5"
    assert list_images(f"{tmp_path}/l*.csv", 1).names == ["p/b.jpg"]


@pytest.mark.parametrize(("content", "columns", "line"), [
    ("id,link\n1,a\n", ListColumns(), r"has no column 'url'; its columns are id, link \(name the column with --set "
                                      r"label\.url_column=NAME\)"),
    ("url\na\n", ListColumns(id="key"), "has no column 'key'.*label.id_column"),
    ("url,id\na,b,c\n", ListColumns(), "cannot be read: CSV parse error"),
    ("", ListColumns(), "has no column 'url'; its columns are none"),
    ("url\nftp://a/b\n", ListColumns(), "lists no photos; left out: 1 have a URL that cannot be read"),
])
def test_bad_lists_are_one_line(tmp_path: Path, content: str, columns: ListColumns, line: str) -> None:
    (tmp_path / "l.csv").write_text(content)
    with pytest.raises(FssError, match=line) as error:
        list_images(str(tmp_path / "l.csv"), columns=columns)
    assert "\n" not in str(error.value)


def test_repeats_are_found_across_batches(tmp_path: Path) -> None:
    urls = [f"https://host/{n % 150_000}.jpg" for n in range(200_000)]
    pq.write_table(pa.table({"url": urls}), tmp_path / "l.parquet")
    images = list_images(str(tmp_path / "l.parquet"))
    assert (len(images), images.totals.left) == (150_000, {"repeat a URL": 50_000})
    assert images.photo(149_999).url == urls[149_999]
    assert len(pickle.loads(pickle.dumps(images)).names) == 150_000  # its pages were in a folder of this process


def test_a_list_whose_listing_was_cut_off_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first command ends behind the first page; the second one begins again, and repeats no photo."""
    monkeypatch.setattr(listing, "PAGE", 1000)
    (tmp_path / "1.csv").write_text("url\n" + "".join(f"https://host/{n}.jpg\n" for n in range(1500)))
    (tmp_path / "2.csv").write_text("id\nno URLs\n")
    whole, out = list_images(str(tmp_path / "1.csv")), Store(str(tmp_path / "out"))
    with pytest.raises(FssError, match="has no column 'url'"):
        list_images(f"{tmp_path}/?.csv", keep=out)
    assert len(out.list("listing")) == 1
    (tmp_path / "2.csv").write_text("url\nhttps://host/1.jpg\n")
    again = list_images(f"{tmp_path}/?.csv", keep=out)
    assert (len(again), again.totals.seen, again.hash) == (1500, 1501, whole.hash)
    again.save(out)
    assert read_listing(out).names == again.names  # type: ignore[union-attr]


def test_photos_in_tar_files(tmp_path: Path) -> None:
    for n in range(3):
        packed(tmp_path / f"s-{n:02}.tar", {
            "1.jpg": b"one", "1.json": b"{}", "1.mask.png": b"m", "a.b.jpg": b"two", "../../c.jpg": b"three",
            "._1.jpg": b"junk"})
    images = list_images(f"{tmp_path}/s-{{00..02}}.tar")
    assert list(images.names)[:4] == ["s-00.tar/1.jpg", "s-00.tar/a.b.jpg", "s-00.tar/c.jpg", "s-01.tar/1.jpg"]
    assert read_all(images) == [b"one", b"two", b"three"] * 3
    assert left_out(images) == ["left out, as they are no photos: 3 .json, 3 .png"]
    assert list_images(f"{tmp_path}/*.tar").hash == images.hash
    (tmp_path / "cut.tar").write_bytes((tmp_path / "s-00.tar").read_bytes()[:1600])
    for name, line in (("cut.tar", "is not a readable tar file"), ("s-07.tar", "does not exist"),
                       ("s-{02..03}.tar", "does not exist"), ("x.tar.gz", "compressed tar")):
        with pytest.raises(FssError, match=line):
            list_images(str(tmp_path / name))
    with pytest.raises(FssError, match=r"holds no photos, but 4 \.tar .*\*\.tar"):
        list_images(str(tmp_path))


def test_a_name_in_a_tar_that_is_not_utf8_is_one_line(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w", encoding="latin-1", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("T\xfcr.jpg"))
    with pytest.raises(FssError, match=r"x\.tar: the file name 'x\.tar/T.udcfcr\.jpg' is not UTF-8"):
        list_images(str(tmp_path / "x.tar"))


def test_dead_urls_are_counted_and_ids_come_back(tmp_path: Path, web: str, bundle: str,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 33 URLs one is gone (404) and one server is away: all others are labelled, and all ids are in the outputs."""
    monkeypatch.setattr(photo_reader, "WEB_ATTEMPTS", 1)
    names = list(list_images(str(photo_folder(tmp_path / "web", 31))).names)
    rows = [f"k{n},{web}/{name}?secret={n}" for n, name in enumerate(names)]
    rows += [f"gone,{web}/gone.jpg", f"busy,{web}/busy.jpg", f"again,{web}/gone.jpg"]
    (tmp_path / "l.csv").write_text("\n".join(["id,url", *rows]))
    labeler = Labeler(bundle)
    support = labeler.add_support(read_support_file(str(supports_file(tmp_path))))
    job = make_job(tmp_path / "l.csv", tmp_path / "out", support, labeler)
    keep_unread(job.out, job.images)
    job.run(DirectEngine(labeler), job.chunks_left(), 2)
    summary = write_outputs(job.out, job.manifest, ("yolo", "label_studio"))
    assert summary["list"] == {"rows": 34, "repeat a URL": 1,
                               "reasons": {"HTTP 404": 1, "cannot be reached: HTTP 503": 1}}
    assert "2 could not be read (1 HTTP 404, 1 cannot be reached: HTTP 503)" in summary_line(summary)
    labels = json.loads(job.out.read_bytes("labels.json"))
    assert [i["source_id"] for i in labels["images"]] == [f"k{n}" for n in range(31)]
    assert "secret" not in json.dumps(labels)
    failures = {(r["source_id"], r["stage"]) for r in job.out.read_table("failures.parquet").to_pylist()}
    assert failures == {("gone", "read"), ("busy", "read"), ("again", "list")}
    tasks = job.out.read_json("label_studio.json")
    assert tasks[0]["data"] == {"image": f"{web}/{names[0]}", "source_id": "k0"}
    host = web.removeprefix("http://")
    assert job.out.exists(f"yolo/labels/{host}/{names[0].removesuffix('.jpg')}.txt")
    assert read_photo(job.out, job.manifest, 4, f"{web}/{names[3]}") == (tmp_path / "web" / names[3]).read_bytes()


def test_a_row_that_cannot_be_read_is_a_failure_of_its_own(tmp_path: Path, web: str,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """No bucket's name, a path through a file, a picture in the cell, a zero byte, a link to itself, a bad answer."""
    made(tmp_path, "x.jpg", "web/damaged.jpg")
    (tmp_path / "web" / "damaged.jpg").write_bytes(b"not packed by gzip")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    rows = ["s3://No Bucket/x.jpg", "x.jpg/y.jpg", f"data:image/jpeg;base64,{'A' * 5000}", "a\0.jpg",
            "loop.jpg", f"{web}/damaged.jpg", "x.jpg"]
    pq.write_table(pa.table({"url": rows}), tmp_path / "l.parquet")
    *bad, good = read_all(list_images(str(tmp_path / "l.parquet")))
    assert good == b"1"
    reasons = [one.reason for one in bad if isinstance(one, PhotoFailure)]
    assert len(reasons) == 6
    assert "cannot be unpacked" in reasons[5]
    assert max(map(len, reasons)) <= 200


def test_a_network_that_is_away_makes_no_failures(tmp_path: Path, web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a million photos that become failures for good because a line was away for a minute."""
    monkeypatch.setattr(photo_reader, "WEB_ATTEMPTS", 1)
    made(tmp_path / "web", "1.jpg")
    dead = "\n".join(f"http://127.0.0.1:9/{n}.jpg" for n in range(8))
    (tmp_path / "l.csv").write_text(f"url\n{dead}\n")
    with pytest.raises(FssError, match="none of the first 8 photos can be reached"):
        read_all(list_images(str(tmp_path / "l.csv")))
    (tmp_path / "l.csv").write_text(f"url\n{web}/1.jpg\n{dead}\n")
    reader = PhotoReader(list_images(str(tmp_path / "l.csv")), max_bytes=100, threads=1)
    assert reader.read([0])[0] == b"1"
    assert all(isinstance(one, PhotoFailure) for one in reader.read(range(1, 9)))
    reader._web._good = "http://127.0.0.1:9/read-before.jpg"
    with pytest.raises(FssError, match="the network is away"):
        reader.read([1])
    reader.close()


def test_labels_of_packed_photos_are_those_of_files(tmp_path: Path, bundle: str) -> None:
    photos = photo_folder(tmp_path / "p", 9)
    packed(tmp_path / "p.tar", {n: (photos / n).read_bytes() for n in list_images(str(photos)).names})
    labeler = Labeler(bundle)
    support = labeler.add_support(read_support_file(str(supports_file(tmp_path))))
    found = {}
    for given in (photos, tmp_path / "p.tar"):
        job = make_job(given, tmp_path / f"out-{given.name}", support, labeler)
        job.run(DirectEngine(labeler), job.chunks_left(), 1)
        write_outputs(job.out, job.manifest)
        found[given.name] = json.loads(job.out.read_bytes("labels.json"))["annotations"]
    assert found["p"]
    assert found["p"] == found["p.tar"]


def test_a_listing_that_was_cut_off_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """9,000 objects in pages of 2,000; the store refuses in the middle. The second command asks only for the rest."""
    monkeypatch.setattr(listing, "PAGE", 2000)
    with object_lists(9000) as server:
        for name, value in {"AWS_ENDPOINT_URL": server.endpoint, "AWS_ACCESS_KEY_ID": "a",
                            "AWS_SECRET_ACCESS_KEY": "b"}.items():
            monkeypatch.setenv(name, value)
        whole = list_images("s3://many/photos")
        assert (len(whole), whole.names[8999], whole.sizes[8]) == (9000, "0008999.jpg", 1001)
        out, server.dies = Store(str(tmp_path / "out")), server.asked + 6
        with pytest.raises(FssError, match="refuses the credentials"):
            list_images("s3://many/photos", keep=out)
        server.asked, server.dies = 0, 10**9
        again = list_images("s3://many/photos", keep=out)
        assert again.hash == whole.hash
        assert server.asked <= 7  # one looks whether the prefix exists; 4,000 to 6,000 objects were kept
        again.save(out)
        assert read_listing(out).names[4001] == "0004001.jpg"  # type: ignore[union-attr]
        assert kept_images(out, "s3://many/photos", 0, ListColumns()) is not None
        assert kept_images(out, "s3://many/photos", 5, ListColumns()) is None
        few = list_images("s3://many/photos", 3)
        assert (len(few), few.names) == (3, ["0000000.jpg", "0000001.jpg", "0000002.jpg"])


def test_a_job_goes_on_with_the_photos_it_began_with(tmp_path: Path, bundle: str) -> None:
    """Photos that come while a job is away do not make it another job, nor are they labelled."""
    labeler = Labeler(bundle)
    support = labeler.add_support(read_support_file(str(supports_file(tmp_path))))
    photos = photo_folder(tmp_path / "p", 9)
    job = make_job(photos, tmp_path / "out", support, labeler)
    keep_unread(job.out, job.images)
    job.label_chunk(0, DirectEngine(labeler), PhotoReader(job.images, max_bytes=10**6, threads=1))
    made(photos, "0.jpg")
    kept = kept_images(job.out, str(photos), 0, ListColumns())
    assert kept is not None
    assert kept.hash == job.images.hash
    assert list_images(str(photos)).hash != kept.hash
    job = LabellingJob(job.out, kept, job.manifest)
    job.run(DirectEngine(labeler), job.chunks_left(), 1)
    assert write_outputs(job.out, job.manifest)["images"] == 9
