"""`fss label --watch` with a real model and no cluster: each photo once, whole, whatever comes when."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from fss_models.errors import FssError
from infra.local.s3 import S3Server
from pipelines.base.storage import Store
from pipelines.config.recipe import Recipe
from pipelines.inference.labeler import Labeler
from pipelines.inference.masks import Labels, PhotoFailure
from pipelines.inference.support_files import read_support_file
from pipelines.labelling import arrivals
from pipelines.labelling.arrivals import Arrivals
from pipelines.labelling.decisions import Decision
from pipelines.labelling.inputs import Inputs
from pipelines.labelling.run import LabelRequest, run_label_job
from pipelines.labelling.watch import run_watch
from pipelines.review.job import open_job
from pipelines.serving.spec import ModelSpec
from tests.labelling.helpers import DirectEngine
from tests.serving.helpers import ball, encoded, supports_file, wait_for

EVERY = 0.1


class CountingEngine(DirectEngine):
    """Records the photos of each request; with `dies_at` it raises at that photo, counted from 1."""

    def __init__(self, labeler: Labeler, dies_at: int = 0) -> None:
        super().__init__(labeler)
        self.photos: list[bytes] = []
        self.dies_at, self.died = dies_at, False

    def label(self, images: list[bytes], *args: Any, **named: Any) -> list[Labels | PhotoFailure]:
        if self.dies_at and len(self.photos) + len(images) >= self.dies_at:
            self.died = True
            raise KeyboardInterrupt
        self.photos += images
        return super().label(images, *args, **named)


class Camera:
    """A folder that photos arrive in, and watches of it."""

    def __init__(self, place: Path, bundle: str, labeler: Labeler, monkeypatch: pytest.MonkeyPatch) -> None:
        self.photos, self.out, self.bundle = place / "photos", place / "out", bundle
        self.photos.mkdir()
        self.supports = supports_file(place)
        self.sent: dict[str, bytes] = {}
        self.images: str = str(self.photos)

        @contextmanager
        def engine(spec: ModelSpec) -> Iterator[DirectEngine]:
            yield self.engine

        self.engine, self.labeler, self.dies_at = CountingEngine(labeler), labeler, 0
        monkeypatch.setattr("pipelines.labelling.run.local_engine", engine)

    def send(self, *numbers: int, folder: str = "") -> None:
        for number in numbers:
            name = f"{folder}{number:03d}.jpg"
            self.sent[name] = encoded(ball(number)[0], quality=90)
            Store(self.images).write_bytes(name, self.sent[name])

    def request(self, *sets: str, out: str = "", **changes: Any) -> LabelRequest:
        label = {"chunk": 4, "batch": 2, "in_flight": 2, **changes.pop("label", {})}
        recipe = Recipe.model_validate({"out": str(self.out) + "-workspace", "methods": [{"name": "prior"}],
                                        "label": label})
        return LabelRequest(recipe=recipe, images=self.images, supports=str(self.supports),
                            out=out or str(self.out), bundle=self.bundle, **changes)

    @contextmanager
    def watched(self, *, relabel: bool = False, **changes: Any) -> Iterator[None]:
        """Watch during the block, then end it as Ctrl-C does."""
        stop, failed = threading.Event(), list[BaseException]()
        self.engine = CountingEngine(self.labeler, self.dies_at)

        def watch() -> None:
            try:
                run_watch(self.request(**changes), every=EVERY, relabel=relabel, stop=stop)
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(60)
        if failed:
            raise failed[0]

    def labelled(self) -> list[str]:
        """The names in the parts, one for each photo, in the order of their ids."""
        out = Store(str(self.out))
        rows = [r for name in out.list("parts") for r in out.read_table(name).to_pylist()]
        assert [r["image_id"] for r in rows] == list(range(1, len(rows) + 1))
        return [r["file_name"] for r in rows]

    def failures(self) -> list[str]:
        file = self.out / "failures.parquet"
        return pq.read_table(file)["file_name"].to_pylist() if file.exists() else []

    def wait_for(self, count: int) -> None:
        """Wait until labels.json has so many photos."""
        file = self.out / "labels.json"
        wait_for(lambda: file.exists() and len(json.loads(file.read_text())["images"]) == count, 30)


@pytest.fixture(scope="module")
def labeler(bundle: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Labeler]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    found = Labeler(bundle)
    found.add_support(read_support_file(str(supports_file(tmp_path_factory.mktemp("support")))))
    yield found
    torch.set_num_threads(before)


@pytest.fixture
def camera(tmp_path: Path, bundle: str, labeler: Labeler, monkeypatch: pytest.MonkeyPatch) -> Camera:
    return Camera(tmp_path, bundle, labeler, monkeypatch)


def test_photos_are_labelled_as_they_arrive(camera: Camera) -> None:
    """Each once, with ids in the order of arrival, in parts as few as those of one job; the next watch goes on."""
    camera.send(7, 8, 9)
    with camera.watched(label={"formats": ["yolo"]}):
        camera.wait_for(3)
        camera.send(1, folder="more/")
        camera.wait_for(4)
        camera.send(*range(20, 25))
        camera.wait_for(9)
    assert len(camera.engine.photos) == 9
    names = camera.labelled()
    assert names[:4] == ["007.jpg", "008.jpg", "009.jpg", "more/001.jpg"]
    assert sorted(names) == sorted(camera.sent)
    assert len(list((camera.out / "parts").iterdir())) == 3
    assert len(list((camera.out / "yolo" / "labels").rglob("*.txt"))) == 9
    with camera.watched(label={"formats": ["yolo"]}):
        camera.send(2)
        camera.wait_for(10)
    assert camera.engine.photos == [camera.sent["002.jpg"]]
    assert camera.labelled() == [*names, "002.jpg"]
    open_job(str(camera.out)).check_complete()


def test_the_labels_are_those_of_a_job(camera: Camera, tmp_path: Path) -> None:
    camera.send(*range(5))
    with camera.watched():
        camera.wait_for(5)
    run_label_job(camera.request(out=str(tmp_path / "whole")))
    watched, whole = (json.loads((p / "labels.json").read_text()) for p in (camera.out, tmp_path / "whole"))
    assert watched["annotations"] == whole["annotations"]
    assert watched["images"] == whole["images"]


def test_a_photo_that_is_being_written_waits(tmp_path: Path) -> None:
    """It is taken after two looks in a row have found it the same; an empty file is never one."""
    (tmp_path / "photos").mkdir()
    found = Arrivals(Store(str(tmp_path / "out")), Inputs("folder", Store(str(tmp_path / "photos"))))
    (tmp_path / "photos" / "empty.jpg").touch()
    with (tmp_path / "photos" / "slow.jpg").open("wb", buffering=0) as file:
        for _ in range(3):
            file.write(b"more")
            arrived = found.look()
            assert (arrived.new, arrived.waiting) == ([], 2)
    assert [(p.name, p.size) for p in found.look().new] == [("slow.jpg", 12)]


def test_a_writer_that_pauses(camera: Camera) -> None:
    """What was read half is no photo, and is labelled without being asked when the rest has come."""
    data, file = encoded(ball(1)[0], quality=90), camera.photos / "slow.jpg"
    camera.send(0)
    with camera.watched():
        file.write_bytes(data[:900])
        camera.wait_for(1)
        wait_for(lambda: bool(camera.failures()), 20)
        file.write_bytes(data)
        camera.wait_for(2)
    assert camera.engine.photos[-1] == data
    assert camera.labelled() == ["000.jpg", "slow.jpg"]
    assert camera.failures() == []


def test_a_picture_whose_name_is_not_utf8(camera: Camera) -> None:
    camera.send(0)
    Path(os.fsdecode(bytes(camera.photos) + b"/\xe4.nef")).touch()
    with camera.watched():
        camera.wait_for(1)
    assert camera.failures() == [r"\xe4.nef"]


@pytest.mark.parametrize("relabel", [False, True])
def test_an_overwritten_photo(camera: Camera, relabel: bool, capfd: pytest.CaptureFixture[str]) -> None:
    """It keeps its label, or with --relabel gets a new one in its place, without a decision about the old photo."""
    camera.send(*range(6))
    with camera.watched():
        camera.wait_for(6)
    job = open_job(str(camera.out))
    before = job.rows_of(2)[0]
    job.decide([Decision(image_id=i, image=f"00{i - 1}.jpg", class_name="ball", decision="reject") for i in (2, 3)])
    (camera.photos / "001.jpg").write_bytes(encoded(ball(77)[0], quality=90))
    with camera.watched(relabel=relabel):
        camera.send(50)
        camera.wait_for(7)
    assert camera.labelled() == [*sorted(camera.sent)[:6], "050.jpg"]
    assert len(camera.engine.photos) == 1 + relabel
    assert (open_job(str(camera.out)).rows_of(2)[0] != before) == relabel
    assert {d.image for d in open_job(str(camera.out)).decisions.values()} == (
        {"002.jpg"} if relabel else {"001.jpg", "002.jpg"})
    said = capfd.readouterr().err
    assert ("1 were overwritten and keep their labels" in said) == (not relabel)


def test_a_photo_that_becomes_what_it_was(tmp_path: Path) -> None:
    """Would catch a photo that keeps the label of the picture in between."""
    photos, out = tmp_path / "photos", Store(str(tmp_path / "out"))
    photos.mkdir()
    found = Arrivals(out, Inputs("folder", Store(str(photos))), relabel=True)
    for number, data in enumerate((b"one", b"two", b"one")):
        (photos / "a.jpg").write_bytes(data)
        os.utime(photos / "a.jpg", (1, {b"one": 1, b"two": 2}[data]))
        assert found.look().waiting == 1
        arrived = found.look()
        assert (len(arrived.new), len(arrived.changed)) == ((1, 0) if number == 0 else (0, 1))
        found.take(arrived)
        assert found.begin_relabelling() == (frozenset({0}) if number else frozenset())
        found.end_relabelling()
        assert found.look().waiting == 0


def test_a_watch_that_dies_in_a_batch_goes_on(camera: Camera) -> None:
    """Would catch photos that are lost between the listing, the manifest and the parts, and photos labelled twice."""
    camera.send(*range(5))
    with camera.watched():
        camera.wait_for(5)
    camera.send(*range(10, 21))
    camera.dies_at = 6
    with pytest.raises(KeyboardInterrupt), camera.watched(label={"in_flight": 1}):
        wait_for(lambda: camera.engine.died, 20)
    camera.dies_at, first = 0, list(camera.engine.photos)
    assert 0 < len(first) < 11
    with camera.watched(label={"in_flight": 1}):
        camera.wait_for(16)
    assert sorted(camera.labelled()) == sorted(camera.sent)
    again = [p for p in camera.engine.photos if p in first]
    assert len(camera.engine.photos) - len(again) + len(set(first)) == 11
    assert len(again) < 4, "more than the chunk in hand was labelled again"


@pytest.mark.parametrize("killed_after", ["page", "about.json", "manifest.json", "relabel.json"])
def test_every_place_to_die_between_two_files(camera: Camera, killed_after: str,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends right after a file of the ledger was written; the next one loses and doubles nothing."""
    monkeypatch.setattr(arrivals, "PAGE", 3)
    camera.send(*range(5))
    with camera.watched():
        camera.wait_for(5)
    camera.send(*range(10, 15))
    (camera.photos / "001.jpg").write_bytes(encoded(ball(77)[0], quality=90))
    with pytest.MonkeyPatch.context() as patch:
        write, died = Store.write_bytes, list[str]()

        def write_and_die(self: Store, relative: str, data: bytes) -> None:
            write(self, relative, data)
            if killed_after in relative:
                died.append(relative)
                raise KeyboardInterrupt

        patch.setattr(Store, "write_bytes", write_and_die)
        with pytest.raises(KeyboardInterrupt), camera.watched(relabel=True):
            wait_for(lambda: bool(died), 20)
    if killed_after == "manifest.json":  # the photos count, but have no labels
        job = open_job(str(camera.out))
        with pytest.raises(FssError, match="photos that have arrived are being labelled"):
            job.check_complete()
        with pytest.raises(FssError, match="photo 6 is not labelled yet"):
            job.rows_of(6)
    with camera.watched(relabel=True):
        camera.wait_for(10)
        wait_for(lambda: not (camera.out / "relabel.json").exists(), 20)
    assert sorted(camera.labelled()) == sorted(camera.sent)
    assert open_job(str(camera.out)).rows_of(2)[0]["height"] == ball(77)[0].shape[0]


def test_a_prefix_is_watched(camera: Camera, s3_server: S3Server) -> None:
    """An object is whole when it is there; the prefix may be empty at first, and the job's own files are no photos."""
    camera.images = f"{s3_server.url}/watched"
    out = f"{camera.images}/labels"
    with camera.watched(out=out, label={"formats": ["semantic"]}):
        camera.send(1, 2)
        store = Store(out)
        wait_for(lambda: store.exists("labels.json"), 30)
        camera.send(3)
        wait_for(lambda: len(store.read_json("labels.json")["images"]) == 3, 30)
    rows = [r["file_name"] for name in store.list("parts") for r in store.read_table(name).to_pylist()]
    assert rows == ["001.jpg", "002.jpg", "003.jpg"]
    assert len(store.list("semantic", suffix=".png")) == 3


def test_two_watches_of_one_folder(camera: Camera, s3_server: S3Server) -> None:
    with camera.watched():
        wait_for((camera.out / "manifest.json").exists, 20)
        with pytest.raises(FssError, match="another `fss label --watch`"):
            run_watch(camera.request(), every=EVERY)
    out, place = Store(f"{s3_server.url}/two"), Inputs("folder", Store(camera.images))
    one, two = Arrivals(out, place), Arrivals(out, place)
    camera.send(1)
    for each in (one, two):
        each.look()
    one.take(one.look())
    with pytest.raises(FssError, match="another `fss label --watch`"):
        two.take(two.look())


@pytest.mark.parametrize(("changes", "line"), [
    ({"limit": 3}, "--limit is not for --watch"),
    ({"engine": "actors"}, "--engine actors is not for --watch"),
    ({"label": {"preprocessing": "auto"}}, "label.preprocessing auto is not for --watch"),
    ({"label": {"features": "keep"}}, "label.features keep is not for --watch"),
    ({"label": {"existing": "annotations.json"}}, "label.existing is not for --watch"),
])
def test_settings_that_do_not_fit(camera: Camera, changes: dict[str, Any], line: str) -> None:
    with pytest.raises(FssError, match=line):
        run_watch(camera.request(**changes), every=EVERY)
    assert not camera.out.exists()


def test_a_job_and_a_watch_do_not_mix(camera: Camera) -> None:
    camera.send(1)
    run_label_job(camera.request())
    with pytest.raises(FssError, match="its watched is None, but this job's is True"):
        run_watch(camera.request(), every=EVERY)


def test_the_memory_of_a_million_photos_is_small(tmp_path: Path) -> None:
    """Known photos are 16 bytes each, and a look at what is known finds nothing."""
    known = arrivals._KnownHashes()
    names = [f"{n:07d}.jpg" for n in range(100_000)]
    known.add(arrivals._hashes(names[::2]))
    assert known.among(arrivals._hashes(names)).tolist() == [n % 2 == 0 for n in range(100_000)]
    assert known._sorted.nbytes == 8 * 50_000
