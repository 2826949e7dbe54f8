"""The console's records of jobs, without a cluster: allowed folders, running jobs, interrupted tasks."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from fss_models.bundle import BundleInfo
from fss_models.errors import FssError
from fss_models.marks import rle_json
from pipelines.base.storage import Store
from pipelines.config.label import LabelConfig, ServeConfig
from pipelines.config.recipe import Recipe
from pipelines.console.jobs import MAX_RUNNING, Jobs
from pipelines.console.records import (
    FOLDER,
    STALE_S,
    JobRecord,
    JobRecords,
    JobRequest,
    Progress,
    check_place,
    check_receiver,
)
from pipelines.console.task import ProgressWriter, _StoppedError
from pipelines.inference.supports import Support, SupportSet
from pipelines.labelling.manifest import MANIFEST, JobManifest, claim_folder
from pipelines.labelling.parts import part_name
from pipelines.serving.requests import RefusedError
from pipelines.serving.spec import ModelSpec, ServiceSpec
from tests.serving.helpers import ball, encoded, wait_for

BUNDLE = BundleInfo(method="prior", preset="nano", preprocessing="plain", tensors_sha256="")


def record(job_id: str) -> JobRecord:
    return JobRecord(job_id=job_id, out="/out", images="/in", title="cup", classes=["cup"], photos=10, settings={},
                     started=time.time(), command="fss label")


def jobs(place: Path, roots: tuple[str, ...] | None = (), bundle_id: str = "b") -> Jobs:
    model = ModelSpec(bundle_url="none", supports_url=str(place / "supports"))
    spec = ServiceSpec(model=model, bundle=BUNDLE, max_request_bytes=1000, workspace=str(place), recipe=Recipe(),
                       roots=roots)
    return Jobs(spec, {"bundle_id": bundle_id, "calibrator": ""}, None)


def half_labelled(served: Jobs, place: Path) -> Store:
    """The folder of the job cup-1 of bundle `b`, with the first of its two parts."""
    out = Store(str(place / "out"))
    claim_folder(out, JobManifest(
        images_url="/in", images_count=10, images_hash="h", class_name="cup", support_id="0" * 16, bundle_id="b",
        method="prior", preset="nano", chunk=5, batch=4, threshold=0.5, limit=0, max_pixels=1, max_bytes=1,
        code_version="1"))
    out.write_bytes(part_name(0), b"")
    served.records.add(record("cup-1").model_copy(update={"out": out.url}))
    return out


def test_places_outside_the_roots_are_refused(tmp_path: Path) -> None:
    """Would catch `..`, links, and names that only begin like a root."""
    inside, outside = tmp_path / "photos", tmp_path / "photos-of-others"
    inside.mkdir()
    outside.mkdir()
    (inside / "link").symlink_to(outside)
    roots = (str(inside), "s3://bucket/open")
    for good in (inside, inside / "more", f"{inside}/./x", "s3://bucket/open", "s3://bucket/open/a"):
        assert check_place(str(good), roots)
    for bad in (outside, inside / "..", inside / "link", "/", "s3://bucket/opened", "s3://bucket", "s3://other/open"):
        with pytest.raises(PermissionError):
            check_place(str(bad), roots)
    for odd in ("a\x00b", "s3://bucket/open/../secret", "ftp://host/x", "\ud800"):
        with pytest.raises(FssError):
            check_place(odd, roots)
    with pytest.raises(PermissionError):
        check_place(str(inside), ())
    assert check_place(str(outside), None) == str(outside)


def test_receivers_outside_the_roots_are_refused() -> None:
    """Would catch servers and paths that only begin like an allowed one, another port, and names before an @."""
    roots = ("https://example.org/hooks", "http://10.0.0.5:8080/")
    for url in ("https://example.org/hooks", "https://example.org:443/hooks/a?key=1", "http://10.0.0.5:8080/any",
                "HTTPS://EXAMPLE.ORG/hooks/"):
        check_receiver(url, roots)
    for url in ("http://example.org/hooks", "https://example.org/hooks-of-others", "https://example.org/",
                "https://example.org:8443/hooks", "https://example.org.evil.net/hooks",
                "https://example.org@evil.net/hooks", "https://me@example.org/hooks",
                "https://example.org/hooks/../admin", "https://example.org/hooks/%2e%2e/admin",
                "https://example.org/hooks/..%5cadmin", "http://10.0.0.5/any",
                "http://169.254.169.254/latest/meta-data", "http://127.0.0.1:8080/",
                "http://[::1]:8080/", "http://0x7f000001/", "http://[bad"):
        with pytest.raises(PermissionError):
            check_receiver(url, roots)
    with pytest.raises(PermissionError):
        check_receiver("https://example.org/hooks", ())
    check_receiver("http://127.0.0.1:8080/", None)


def test_a_client_may_not_have_any_url_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a service that others reach no URL but those of serve.notify_roots; on loopback any, with a secret."""
    def ask(served: Jobs) -> None:
        served.start(JobRequest(images=str(tmp_path), support_ids=["0" * 16], notify="http://169.254.169.254/a"))

    served = jobs(tmp_path, (str(tmp_path),))
    public = replace(served.spec, recipe=Recipe(serve=ServeConfig(host="0.0.0.0", notify_roots=["https://a.b/"])))
    closed = replace(served.spec, recipe=Recipe(serve=ServeConfig(host="0.0.0.0")))
    for spec in (public, closed):
        served.take(spec, served.about)
        with pytest.raises(RefusedError, match="may not call the URL of notify") as refused:
            ask(served)
        assert refused.value.status == 403
    served.take(replace(public, roots=None), served.about)
    half_labelled(served, tmp_path)
    served.records.add(record("cup-1").model_copy(update={
        "out": str(tmp_path / "out"), "settings": {"notify": "http://10.0.0.1/"}}))
    with pytest.raises(RefusedError, match="may not call the URL of notify"):
        served.resume("cup-1")
    served = jobs(tmp_path, None)
    monkeypatch.delenv("FSS_WEBHOOK_SECRET", raising=False)
    with pytest.raises(FssError, match="there is no FSS_WEBHOOK_SECRET"):
        ask(served)


def test_refusals_have_their_status(tmp_path: Path) -> None:
    served = jobs(tmp_path)
    with pytest.raises(RefusedError, match=r"may not read .* no folder") as refused:
        served.start(JobRequest(images=str(tmp_path), support_ids=["0" * 16]))
    assert refused.value.status == 403
    with pytest.raises(RefusedError) as missing:
        served.show("../../etc")
    assert missing.value.status == 404
    for number in range(MAX_RUNNING):
        served.records.add(record(f"cup-{number}"))
        served.records.write_progress(f"cup-{number}", Progress(state="running"))
    with pytest.raises(RefusedError, match="jobs are running already") as busy:
        served._check_capacity("cup-9")
    assert busy.value.status == 429
    served._check_capacity("cup-0")  # a running job needs no further capacity
    assert [j["state"] for j in served.list()["jobs"]] == ["running"] * MAX_RUNNING


def test_another_bundle_does_not_resume_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch labels of two models in one job."""
    served = jobs(tmp_path, None, "another")
    out = half_labelled(served, tmp_path)
    monkeypatch.setattr(Jobs, "_start_task", lambda self, record: {"started": record.job_id})
    with pytest.raises(FssError, match=r"with bundle_id 'b', not 'another' \(start `fss serve`"):
        served.resume("cup-1")
    assert jobs(tmp_path, None).resume("cup-1") == {"started": "cup-1"}
    out.write_bytes(part_name(1), b"")
    with pytest.raises(FssError, match="with bundle_id 'b', not 'another'"):
        served.redo("cup-1", 0.5)
    assert served.resume("cup-1") == {"started": "cup-1"}  # only the outputs are missing


def test_a_service_with_another_precision_does_not_resume_a_job(tmp_path: Path,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch labels of two precisions in one job."""
    served = jobs(tmp_path, None)
    half_labelled(served, tmp_path)
    monkeypatch.setattr(Jobs, "_start_task", lambda self, record: {"started": record.job_id})
    model = replace(served.spec.model, serve=ServeConfig(precision="bfloat16"))
    served.take(replace(served.spec, model=model), served.about)
    with pytest.raises(FssError, match=r"precision 'float32', not 'bfloat16' \(.*serve.precision=float32"):
        served.resume("cup-1")


def test_a_job_has_what_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every setting of a request reaches the manifest; what the service cannot do does not."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "0.jpg").write_bytes(encoded(ball(0)[0], "JPEG"))
    photo, mask = ball(1000)
    ball_set = SupportSet("ball", (Support(encoded(photo, "PNG"), {"mask": rle_json(mask)}),))
    served = jobs(tmp_path, None)
    recipe = Recipe(label=LabelConfig(features="keep", batch="auto", preprocessing="auto"))
    about = {"bundle_id": "b", "calibrator": "c", "method": "prior", "preset": "nano"}
    served.take(replace(served.spec, recipe=recipe), about)
    monkeypatch.setattr(Jobs, "_start_task", lambda self, record: record.model_dump())
    asked = {"threshold": 0.4, "instances": "pieces", "prevalence": 0.2}
    started = served.start(JobRequest.model_validate({
        "images": str(tmp_path / "photos"), "support_ids": [ball_set.save(str(tmp_path / "supports"))], **asked}))
    manifest = JobManifest.model_validate(Store(started["out"]).read_json(MANIFEST))
    assert {k: getattr(manifest, k) for k in asked} == asked == started["settings"]
    assert (manifest.features, manifest.batch, manifest.preprocessing) == ("off", 8, "bundle")
    assert "--instances=pieces" in started["command"]


def test_a_job_of_photos_outside_the_roots_is_not_opened(tmp_path: Path) -> None:
    served = jobs(tmp_path, ("/photos",))
    half_labelled(served, tmp_path)
    for call in (lambda: served.photo("cup-1", 1), lambda: served.redo("cup-1", None), lambda: served.resume("cup-1")):
        with pytest.raises(RefusedError, match="may not read '/in'"):
            call()


def test_a_task_without_progress_was_interrupted(tmp_path: Path) -> None:
    records = JobRecords(str(tmp_path))
    records.add(record("cup-1"))
    assert records.progress("cup-1").state == "interrupted"
    records.write_progress("cup-1", Progress(state="running", done=3, rate=2.0))
    assert records.progress("cup-1").state == "running"
    late = Progress(state="running", done=3, rate=2.0, at=time.time() - STALE_S - 1)
    records.store.write_json(f"{FOLDER}/cup-1.progress.json", late.model_dump())
    assert records.progress("cup-1") == late.model_copy(update={"state": "interrupted", "rate": 0.0})


def test_the_end_of_a_task_is_recorded(tmp_path: Path) -> None:
    records = JobRecords(str(tmp_path))
    records.add(record("cup-1"))
    with ProgressWriter(records, "cup-1", 0) as progress:
        progress.update(4, 1)
        records.set_stop("cup-1", True)
        with pytest.raises(_StoppedError):
            progress.update(8, 1)
        raise _StoppedError
    assert (records.progress("cup-1").state, records.progress("cup-1").failed) == ("stopped", 2)
    with ProgressWriter(records, "cup-1", 8):
        raise FssError("the disk is full", where="/out")
    assert (records.progress("cup-1").state, records.progress("cup-1").error) == ("failed", "/out: the disk is full")


def test_progress_is_written_after_an_outage_of_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a running job that is called interrupted."""
    written: list[Progress] = []

    def write(self: JobRecords, job_id: str, progress: Progress) -> None:
        written.append(progress)
        if len(written) == 2:
            raise FssError("cannot reach the store")

    monkeypatch.setattr("pipelines.console.task.BEAT_S", 0.01)
    monkeypatch.setattr(JobRecords, "write_progress", write)
    with ProgressWriter(JobRecords(str(tmp_path)), "cup-1", 0):
        wait_for(lambda: len(written) > 3, 5)
    assert len(written) > 4
    assert written[-1].error == ""


def test_settings_that_contradict_one_another() -> None:
    with pytest.raises(ValueError, match="less than replicas"):
        ServeConfig(replicas=3, max_replicas=2)
    assert ServeConfig(replicas=2, max_replicas=4).max_replicas == 4
