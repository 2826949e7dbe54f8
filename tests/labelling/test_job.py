"""The labelling job with a real model and no cluster: its outputs, resuming, and mistakes."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO

from fss_models import registry
from fss_models.errors import FssError
from pipelines.base.storage import Store
from pipelines.bundles.bundle import save_bundle
from pipelines.config.recipe import Recipe
from pipelines.inference.labeler import Labeler
from pipelines.inference.masks import PhotoFailure
from pipelines.labelling.images import PhotoReader, check_out, list_images
from pipelines.labelling.outputs import write_outputs
from pipelines.labelling.parts import finished_chunks, part_name
from pipelines.labelling.run import LabelRequest, run_label_job
from pipelines.serving.spec import ModelSpec
from tests.labelling.helpers import DirectEngine, make_job
from tests.serving.helpers import ball, encoded, photo_folder, supports_file


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photo_folder(tmp_path_factory.mktemp("photos") / "p", 20)


def test_every_photo_is_labelled_once(photos: Path, tmp_path: Path, labeler: Labeler, support: str) -> None:
    job = make_job(photos, tmp_path, support, labeler)
    engine = DirectEngine(labeler)
    assert job.run(engine, job.chunks_left(), 2) == 20
    assert sorted(engine.requests) == [4, 8, 8]
    summary = write_outputs(job.out, job.manifest)
    assert (summary["images"], summary["with_object"], summary["failed"]) == (20, 20, 0)
    labels = COCO(str(tmp_path / "labels.json"))
    assert sorted(labels.imgs) == list(range(1, 21)) == sorted(a["image_id"] for a in labels.anns.values())
    for annotation in labels.anns.values():
        name = labels.imgs[annotation["image_id"]]["file_name"]
        truth = ball(int(Path(name).stem))[1]
        found = labels.annToMask(annotation).astype(bool)
        assert (found & truth).sum() > 0.9 * truth.sum(), name
        assert (found & truth).sum() > 0.25 * found.sum(), name
    assert pq.read_table(tmp_path / "failures.parquet").num_rows == 0


def test_parts_are_the_same_bytes(photos: Path, tmp_path: Path, labeler: Labeler, support: str) -> None:
    """Would catch results that depend on the order of chunks, on their number in flight or on a clock."""
    for name, flying in (("a", 1), ("b", 3)):
        job = make_job(photos, tmp_path / name, support, labeler)
        job.run(DirectEngine(labeler), job.chunks_left()[:: 1 if name == "a" else -1], flying)
        write_outputs(job.out, job.manifest)
    for part in [part_name(c) for c in range(3)] + ["labels.json", "failures.parquet"]:
        assert (tmp_path / "a" / part).read_bytes() == (tmp_path / "b" / part).read_bytes(), part


def test_large_photos_go_in_pieces(photos: Path, tmp_path: Path, labeler: Labeler, support: str) -> None:
    """A chunk that is larger than a request gives the same labels, and so does a photo that is larger than one."""
    whole = make_job(photos, tmp_path / "whole", support, labeler)
    whole.run(DirectEngine(labeler), [0], 1)
    size = max(p.stat().st_size for p in photos.rglob("*.jpg"))
    for limit in (3 * size, 1):
        engine = DirectEngine(labeler, request_bytes=limit)
        pieces = make_job(photos, tmp_path / str(limit), support, labeler)
        pieces.run(engine, [0], 1)
        assert len(engine.requests) > 1
        assert sum(engine.requests) == 8
        assert (tmp_path / "whole" / part_name(0)).read_bytes() == (tmp_path / str(limit) / part_name(0)).read_bytes()
    engine.photo_bytes = 1
    small = make_job(photos, tmp_path / "small", support, labeler)
    small.run(engine, [0], 1)
    assert small.out.read_table(part_name(0), ["stage"])["stage"].to_pylist() == ["send"] * 8


def test_only_what_is_left(photos: Path, tmp_path: Path, labeler: Labeler, support: str) -> None:
    job = make_job(photos, tmp_path, support, labeler)
    job.run(DirectEngine(labeler), [0, 2], 1)
    (tmp_path / "parts" / ".tmp-chunk-000001.parquet-x").write_bytes(b"killed while writing")
    engine = DirectEngine(labeler)
    again = make_job(photos, tmp_path, support, labeler)
    assert again.chunks_left() == [1]
    again.run(engine, again.chunks_left(), 1)
    assert engine.requests == [8]
    assert finished_chunks(again.out) == {0, 1, 2}
    assert make_job(photos, tmp_path, support, labeler).chunks_left() == []


@pytest.mark.parametrize(("change", "key"), [
    ({"threshold": 0.6}, "threshold"), ({"support_id": "f" * 16}, "support_id"), ({"chunk": 16}, "chunk"),
    ({"bundle_id": "f" * 16}, "bundle_id"), ({"limit": 3, "images_count": 3}, "images_count"),
])
def test_another_job_in_the_folder_is_refused(photos: Path, tmp_path: Path, labeler: Labeler, support: str,
                                              change: dict[str, object], key: str) -> None:
    make_job(photos, tmp_path, support, labeler)
    with pytest.raises(FssError, match=f"holds another job: its {key} is"):
        make_job(photos, tmp_path, **{"support_id": support, "labeler": labeler, **change})  # type: ignore[arg-type]


def test_changed_photos_are_another_job(tmp_path: Path, labeler: Labeler, support: str) -> None:
    photos = photo_folder(tmp_path / "photos", 3)
    make_job(photos, tmp_path / "out", support, labeler)
    (photos / "0001.jpg").write_bytes(encoded(ball(77)[0]))
    with pytest.raises(FssError, match="images_hash"):
        make_job(photos, tmp_path / "out", support, labeler)


def bad_folder(folder: Path) -> None:
    """Photos of every kind that breaks naive readers."""
    folder.mkdir()
    photo, _ = ball(1, 120, 160)
    good = encoded(photo)
    (folder / "truncated.jpg").write_bytes(good[: len(good) // 2])
    (folder / "zero.jpg").write_bytes(b"")
    (folder / "text.png").write_bytes(b"this is no picture")
    Image.new("1", (10_000, 10_001)).save(folder / "bomb.png")
    Image.fromarray(photo).convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(photo[..., 0].astype(np.uint16) * 257).save(folder / "deep.png")
    Image.fromarray(photo).quantize(64).save(folder / "palette.png")
    Image.fromarray(photo).convert("L").save(folder / "grey.jpg")
    Image.fromarray(photo).convert("RGBA").save(folder / "rgba.png")
    Image.fromarray(photo).save(folder / "web.webp")
    Image.fromarray(photo).save(folder / "scan.tif")
    exif = Image.Exif()
    exif[0x0112] = 6
    (folder / "turned.JPG").write_bytes(encoded(photo, exif=exif))
    (folder / "dangling.jpg").symlink_to(folder / "gone.jpg")
    (folder / "notes.txt").write_text("not a photo, and not counted")
    (folder / ".hidden.jpg").write_bytes(good)


def test_bad_photos_are_rows_and_the_work_goes_on(tmp_path: Path, labeler: Labeler, support: str) -> None:
    bad_folder(tmp_path / "bad")
    job = make_job(tmp_path / "bad", tmp_path / "out", support, labeler)
    job.run(DirectEngine(labeler), job.chunks_left(), 2)
    summary = write_outputs(job.out, job.manifest)
    failed = {r["file_name"]: r for r in pq.read_table(tmp_path / "out" / "failures.parquet").to_pylist()}
    assert set(failed) == {"truncated.jpg", "zero.jpg", "text.png", "bomb.png", "dangling.jpg"}
    assert "truncated" in failed["truncated.jpg"]["reason"]
    assert "0 bytes" in failed["zero.jpg"]["reason"]
    assert "pixels" in failed["bomb.png"]["reason"]
    assert failed["dangling.jpg"]["stage"] == "read"
    assert summary["failed"] == 5
    labels = COCO(str(tmp_path / "out" / "labels.json"))
    sizes = {i["file_name"]: (i["height"], i["width"]) for i in labels.imgs.values()}
    upright = {"cmyk.jpg", "deep.png", "palette.png", "grey.jpg", "rgba.png", "web.webp", "scan.tif"}
    assert sizes == {**dict.fromkeys(upright, (120, 160)), "turned.JPG": (160, 120)}
    by_name = {labels.imgs[a["image_id"]]["file_name"]: a for a in labels.anns.values()}
    truth = ball(1, 120, 160)[1]
    for name, mask in (("rgba.png", truth), ("turned.JPG", np.rot90(truth, -1))):
        found = coco.decode(by_name[name]["segmentation"]).astype(bool)
        assert (found & mask).sum() / (found | mask).sum() > 0.4, name


def test_places_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FssError, match="nowhere: does not exist"):
        list_images(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("")
    with pytest.raises(FssError, match="holds no photos"):
        list_images(str(tmp_path / "empty"))


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xff.jpg")).write_bytes(b"")
    with pytest.raises(FssError, match=r"file name 'b\\udcff.jpg' is not UTF-8 \(rename the file\)"):
        list_images(str(tmp_path))
    (tmp_path / "a.jpg").write_bytes(b"")
    assert list(list_images(str(tmp_path), 1).names) == ["a.jpg"]


def test_what_a_job_writes_below_the_photos_is_no_photo(tmp_path: Path) -> None:
    for name in ("a.jpg", "out/semantic/a.png", "outer/b.jpg"):
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "p" / name).write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "p")
    for out in (tmp_path / "p" / "out", tmp_path / "link" / "out", tmp_path / "p" / "x" / ".." / "out"):
        found = list_images(str(tmp_path / "p"), outs=["/elsewhere", str(out)])
        assert list(found.names) == ["a.jpg", "outer/b.jpg"]
    for url in (str(tmp_path / "p"), "s3://fss/photos"):
        check_out(url, f"{url}/out")
        with pytest.raises(FssError, match="is the folder of --images"):
            check_out(url, f"{url}/")


@pytest.mark.parametrize(("number", "lost"), [
    (errno.ENOENT, True), (errno.EACCES, True), (errno.EISDIR, True),
    (errno.EIO, False), (errno.ESTALE, False), (errno.EMFILE, False),
])
def test_only_a_photo_that_is_not_there_is_a_failure(photos: Path, number: int, lost: bool) -> None:
    """Would catch photos that become failures for good because a disk failed for a moment."""
    class Disk:
        def cat_file(self, path: str) -> bytes:
            raise OSError(number, os.strerror(number), path)

    reader = PhotoReader(list_images(str(photos)), max_bytes=10**6, threads=1)
    vars(reader._store)["fs"] = Disk()
    if lost:
        assert isinstance(reader.read([0])[0], PhotoFailure)
    else:
        with pytest.raises(FssError, match=os.strerror(number)):
            reader.read([0])
    reader.close()


def test_numbers_follow_the_sorted_names(photos: Path) -> None:
    images = list_images(str(photos))
    assert list(images.names) == sorted(images.names)
    assert len(images) == 20
    assert list(list_images(str(photos), 5).names) == images.names[:5]
    assert images.hash != list_images(str(photos), 19).hash


def test_a_job_in_a_folder_of_the_photos_and_another_bundle(tmp_path: Path, bundle: str,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    """A job does not label the pictures that it wrote itself; a bundle that changes before the start is refused."""
    photos, supports, champion = photo_folder(tmp_path / "p", 9), supports_file(tmp_path), tmp_path / "champion"
    shutil.copytree(bundle, champion)

    @contextmanager
    def engine(spec: ModelSpec) -> Iterator[DirectEngine]:
        if promoted:
            save_bundle(str(champion), registry.build("prior", "nano", seed=1))
        found = Labeler(spec.bundle_url, supports_url=spec.supports_url, bundle_id=spec.bundle_id)
        yield DirectEngine(found)

    def label(out: str, *formats: str) -> dict[str, Any]:
        recipe = Recipe.model_validate({"out": str(tmp_path / "ws"), "label": {"formats": formats, "chunk": 8}})
        return run_label_job(LabelRequest(recipe=recipe, images=str(photos), supports=str(supports),
                                          out=str(photos / out), bundle=str(champion)))

    monkeypatch.setattr("pipelines.labelling.run.local_engine", engine)
    promoted = False
    assert label("out", "semantic")["labelled_now"] == 9
    assert len(list(photos.glob("out/semantic/**/*.png"))) == 9
    assert label("out", "semantic", "parquet")["labelled_now"] == 0
    promoted = True
    shutil.rmtree(photos / "out")
    with pytest.raises(FssError, match=r"champion: the bundle is \w+ now, no longer \w+ \(start the service again, or"):
        label("out")
    assert not list(photos.glob("out/parts/*"))


def test_the_same_through_s3(photos: Path, tmp_path: Path, labeler: Labeler, support: str, s3_server: object) -> None:
    """Photos, parts and labels in a real object store give the same bytes as on disk."""
    store = Store("s3://fss/labelling")
    store.fs.mkdirs("fss", exist_ok=True)
    for name in list_images(str(photos), 10).names:
        store.write_bytes(f"photos/{name}", (photos / name).read_bytes())
    for source, out in ((store.path("photos"), store.path("out")), (str(photos), str(tmp_path))):
        job = make_job(source, out, support, labeler, **({} if "://" in out else {"limit": 10}))
        job.run(DirectEngine(labeler), job.chunks_left(), 2)
        write_outputs(job.out, job.manifest)
    there, here = store.read_bytes("out/labels.json"), (tmp_path / "labels.json").read_bytes()
    assert json.loads(there)["annotations"]
    assert there == here
    assert store.read_bytes(f"out/{part_name(0)}") == (tmp_path / part_name(0)).read_bytes()
