"""The listing of photos to label: suffixes, links, junk, and what is left out being told."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from fss_models.errors import FssError
from pipelines.base.storage import Store
from pipelines.inference.labeler import Labeler
from pipelines.inference.support_files import read_support_file
from pipelines.labelling.images import keep_unread, left_out, list_images
from pipelines.labelling.outputs import summary_line, write_outputs
from tests.labelling.helpers import DirectEngine, make_job
from tests.serving.helpers import supports_file


def made(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"1")
    return folder


def test_photos_of_every_suffix_and_no_junk(tmp_path: Path) -> None:
    good = ["1.JPG", "2.jfif", "3.gif", "4.avif", "5.jp2", "6.mpo", "7.jpe", "8.HEIC", "9.tiff"]
    made(tmp_path, *good, "._1.jpg", ".ipynb_checkpoints/1-checkpoint.jpg", "__MACOSX/1.jpg", "a/Thumbs.db",
         "@eaDir/1.jpg")
    found = list_images(str(tmp_path))
    assert list(found.names) == good
    assert left_out(found) == []


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    made(tmp_path / "elsewhere", "4.jpg", "x/3.jpg")
    made(tmp_path / "photos", "1.jpg")
    (tmp_path / "photos" / "day2").symlink_to("../elsewhere")
    (tmp_path / "photos" / "loop").symlink_to("../photos")
    (tmp_path / "photos" / "gone.jpg").symlink_to("../nowhere")
    found = list_images(str(tmp_path / "photos"))
    assert dict(zip(found.names, found.sizes, strict=True)) == {
        "1.jpg": 1, "day2/4.jpg": 1, "day2/x/3.jpg": 1, "gone.jpg": 0}


def test_what_is_left_out_is_told_by_suffix(tmp_path: Path) -> None:
    made(tmp_path / "all", "1.jpg", "1.CR2", "b/2.nef", "2.cr2", "notes.txt", "1.txt", "labels.json", "README")
    found = list_images(str(tmp_path / "all"), 1)
    assert list(found.names) == ["1.jpg"]
    assert left_out(found) == [
        "left out: 2 .cr2, 1 .nef, which are not read: save them as JPEG or PNG",
        "left out, as they are no photos: 2 .txt, 1 without a suffix, 1 .json",
    ]
    made(tmp_path / "none", *(f"{n}.s{n}" for n in range(9)))
    with pytest.raises(FssError, match=r"holds no photos, but 1 \.s0, .*, 3 others \(names of photos end in \.jpg, "):
        list_images(str(tmp_path / "none"))


def test_pictures_that_are_not_read_are_rows_of_failures(tmp_path: Path, bundle: str) -> None:
    labeler = Labeler(bundle)
    support = labeler.add_support(read_support_file(str(supports_file(tmp_path))))
    photos = made(tmp_path / "photos", "1.heic", "2.CR2")
    (photos / "1.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    Image.new("RGB", (40, 30), (9, 99, 9)).save(photos / "3.gif")
    job = make_job(photos, tmp_path / "out", support, labeler)
    keep_unread(job.out, job.images)
    job.run(DirectEngine(labeler), job.chunks_left(), 1)
    summary = write_outputs(job.out, job.manifest)
    assert (summary["images"], summary["failed"], summary["unread"]) == (2, 1, 1)
    assert "1 could not be read" in summary_line(summary)
    assert "1 left out, in formats that are not read" in summary_line(summary)
    rows = {r["file_name"]: r["reason"] for r in pq.read_table(tmp_path / "out" / "failures.parquet").to_pylist()}
    assert rows["1.heic"] == "not an image this program can read"  # no more than the head of one
    assert "save it as JPEG" in rows["2.CR2"]


def test_a_name_that_is_not_utf8_is_left_out_and_told(tmp_path: Path, bundle: str) -> None:
    labeler = Labeler(bundle)
    support = labeler.add_support(read_support_file(str(supports_file(tmp_path))))
    photos = made(tmp_path / "photos", "1.jpg")
    for name in (b"\xe4.nef", b"a.\xe4"):
        Path(os.fsdecode(bytes(photos) + b"/" + name)).touch()
    job = make_job(photos, tmp_path / "out", support, labeler)
    "\n".join(left_out(job.images)).encode()
    keep_unread(job.out, job.images)
    job.run(DirectEngine(labeler), job.chunks_left(), 1)
    assert write_outputs(job.out, job.manifest)["unread"] == 1
    assert job.out.read_table("failures.parquet")["file_name"].to_pylist() == ["1.jpg", r"\xe4.nef"]


def test_the_same_in_a_bucket(s3_server: object, tmp_path: Path) -> None:
    url = "s3://fss/junk"
    for name in ("a.jpg", "._a.jpg", "__MACOSX/a.jpg", "b/c.gif", "d.dng"):
        Store(url).write_bytes(name, b"1")
    found = list_images(url)
    assert (list(found.names), found.unread) == (["a.jpg", "b/c.gif"], ["d.dng"])
