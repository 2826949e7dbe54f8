"""Settings that are `auto`: from the manifest, from the service, or measured with the job's photos."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fss_models.errors import FssError
from fss_models.limits import PhotoLimits
from fss_models.marks import rle_json
from pipelines.base.storage import Store
from pipelines.config.computing import Computing
from pipelines.config.data import DataConfig
from pipelines.config.label import LabelConfig, ServiceSettings
from pipelines.config.recipe import Recipe
from pipelines.inference.labeler import Labeler
from pipelines.inference.supports import Support, SupportSet
from pipelines.labelling import run
from pipelines.labelling import settle as module
from pipelines.labelling.images import list_images
from pipelines.labelling.manifest import claim_folder
from pipelines.labelling.run import describe_job
from pipelines.labelling.settle import continued, differs, fastest_batch, settle
from pipelines.serving.spec import free_models, waits_for_gpu
from tests.serving.helpers import ball, encoded, supports_file

HEALTH = {"batch": 4, "precision": "bfloat16", "compile": False, "preprocessing": "fast"}
AUTO = LabelConfig(batch="auto", precision="auto", preprocessing="auto")


def classes() -> list[SupportSet]:
    photo, mask = ball(1000)
    return [SupportSet("ball", (Support(encoded(photo, "PNG"), {"mask": rle_json(mask)}),))]


@pytest.fixture
def job(tmp_path: Path) -> dict[str, Any]:
    """What `settle` is asked with."""
    (tmp_path / "photos").mkdir()
    for seed in range(4):
        (tmp_path / "photos" / f"{seed}.jpg").write_bytes(encoded(ball(seed)[0], "JPEG"))
    return {"bundle": "", "classes": classes(), "images": list_images(str(tmp_path / "photos")),
            "data": DataConfig()}


def test_a_service_that_differs_is_named() -> None:
    fits = LabelConfig(batch=4, precision="bfloat16", preprocessing="fast")
    assert differs(HEALTH, fits) == ""
    assert differs(HEALTH, AUTO) == ""
    assert differs(HEALTH, LabelConfig(batch=4)) == "precision"
    assert differs(HEALTH, LabelConfig(batch=8)) == "batch"
    assert differs({"batch": 8}, LabelConfig()) == ""  # a service of an older version


def test_a_job_of_a_service_takes_its_settings(job: dict[str, Any]) -> None:
    found, measured = settle(AUTO, HEALTH, **job)
    assert found.computing() == {k: HEALTH[k] for k in ("precision", "compile", "preprocessing")}
    assert (found.batch, measured) == (4, {})


def test_a_job_that_goes_on_keeps_its_settings(job: dict[str, Any], tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine, or another day, would measure something else; a service that came up since has its own."""
    monkeypatch.setattr(module, "_on_device", lambda *_: pytest.fail("measured again"))
    out = Store(str(tmp_path / "out"))
    assert continued(AUTO, out) == AUTO
    out.write_json("manifest.json", {"batch": 2, "precision": "bfloat16", "agreement": 0.5})
    found = continued(AUTO, out)
    assert (found.batch, found.precision, found.preprocessing) == (2, "bfloat16", "bundle")
    assert settle(found, None, **job) == (found, {})
    assert differs(HEALTH, found) == "batch"


def test_a_job_that_goes_on_does_not_use_a_service_with_other_settings(tmp_path: Path,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a job whose manifest names one precision, and whose parts have two."""
    Store(str(tmp_path / "out")).write_json("manifest.json", {"batch": 4, "preprocessing": "fast"})
    about = {**HEALTH, "bundle_id": "b", "calibrator": ""}
    monkeypatch.setattr(run, "reach_service", lambda _: about)
    request = run.LabelRequest(recipe=Recipe(label=AUTO), images="none", out=str(tmp_path / "out"), service="http://x",
                               supports=str(supports_file(tmp_path)))
    with pytest.raises(FssError, match="the service's precision is bfloat16, but the job's is float32"):
        run.run_label_job(request)


def test_a_measured_agreement_is_no_setting(job: dict[str, Any], tmp_path: Path) -> None:
    """A job that measured its mode goes on with that mode given."""
    about, out = {"bundle_id": "b", "method": "prior", "preset": "nano", "calibrator": ""}, Store(str(tmp_path / "out"))
    recipe = Recipe(label=LabelConfig(preprocessing="fast"))
    assert not claim_folder(out, describe_job(recipe, about, job["images"], job["classes"], 0, {"agreement": 0.999}))
    assert claim_folder(out, describe_job(recipe, about, job["images"], job["classes"]))


def test_a_photo_that_blocks_its_decoder_is_not_compared(job: dict[str, Any], tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def stuck(photos: dict[int, bytes], _limits: PhotoLimits, seconds: float) -> dict[int, str]:
        asked.append(seconds)
        return {min(photos): "its decoder crashes"}

    monkeypatch.setattr(module, "stuck_photos", stuck)
    photos = module._some_photos(job["images"], DataConfig(max_seconds=7))
    assert photos == [(tmp_path / "photos" / f"{n}.jpg").read_bytes() for n in (1, 2, 3)]
    assert asked == [7]


def test_settings_are_measured(job: dict[str, Any], bundle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(module, "CPU_BATCHES", (1, 2))
    found, measured = settle(AUTO, None, **{**job, "bundle": bundle})
    assert found.batch in (1, 2)
    assert found.precision in ("float32", "bfloat16")
    assert 0 <= measured["agreement"] <= 1
    assert found.preprocessing == ("fast" if measured["agreement"] >= module.SAME else "published")


def test_the_fastest_batch_wins(bundle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A larger batch is taken only if it is worth its memory."""
    labeler = Labeler(bundle)
    times = {1: 1.0, 2: 0.99, 4: 0.5, 8: 0.49, 16: 0.7}
    monkeypatch.setattr(labeler, "seconds_a_photo", lambda _, size, __: times[size])
    assert fastest_batch(labeler, "")[0] == 4


@pytest.mark.parametrize(("free", "tried"), [(1 << 60, [1, 2, 4]), (0, [1])])
def test_batches_that_need_too_much_memory_are_left_out(free: int, tried: list[int], bundle: str,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a measurement that ends the job, by PyTorch's error on a CPU or by the system."""
    labeler, asked = Labeler(bundle), []

    def measured(_: str, size: int, __: int) -> float:
        asked.append(size)
        if size == 4:
            torch.empty(1 << 46)
        return 1 / size

    monkeypatch.setattr(labeler, "seconds_a_photo", measured)
    monkeypatch.setattr(module, "free_memory", lambda: free)
    monkeypatch.setattr(module, "_peak_memory", lambda: 1 << 50)
    assert fastest_batch(labeler, "")[0] == min(2, tried[-1])
    assert asked == tried


def test_defaults_are_not_in_the_manifest(job: dict[str, Any]) -> None:
    """A job of an older version goes on: its manifest does not say what it could not choose."""
    about = {"bundle_id": "b", "method": "prior", "preset": "nano", "calibrator": ""}
    plain = describe_job(Recipe(), about, job["images"], job["classes"]).content()
    assert not plain.keys() & {*Computing.model_fields, "features", "agreement"}
    recipe = Recipe(label=LabelConfig(precision="bfloat16", features="keep", preprocessing="fast"))
    chosen = describe_job(recipe, about, job["images"], job["classes"], measured={"agreement": 0.999}).content()
    assert {k: chosen[k] for k in chosen.keys() - plain.keys()} == {
        "precision": "bfloat16", "features": "keep", "preprocessing": "fast", "agreement": 0.999}


def test_a_service_cannot_compare_modes() -> None:
    with pytest.raises(ValueError, match="preprocessing auto is for jobs"):
        ServiceSettings(preprocessing="auto")


@pytest.mark.parametrize(("gpus", "free", "room"), [
    (4, 4, (4, 1.0)), (4, 3.5, (3, 1.0)), (4, 3, (2, 1.0)), (2, 1, (1, 0.5)), (1, 1, (1, 1.0)), (1, 0.5, (1, 0.5)),
    (1, 0, (1, 0.5))])
def test_a_job_starts_beside_a_service(gpus: float, free: float, room: tuple[int, float]) -> None:
    """Would catch a deployment that waits without end for GPUs of which a service has half."""
    ray = SimpleNamespace(cluster_resources=lambda: {"GPU": gpus}, available_resources=lambda: {"GPU": free})
    assert free_models(ray, "cuda") == room


@pytest.mark.parametrize(("device", "free", "share", "line"), [
    ("cpu", 0, 1.0, ""), ("cuda", 1.5, 1.0, ""), ("cuda", 0.5, 0.5, ""),
    ("cuda", 0.5, 1.0, "(0.5 of 2 left): this job waits for a whole one"),
    ("cuda", 0, 0.5, "(0 of 2 left): this job waits for 0.5 of one")])
def test_a_job_says_that_it_waits(device: str, free: float, share: float, line: str) -> None:
    """Would catch a job that stands still without a word."""
    ray = SimpleNamespace(cluster_resources=lambda: {"GPU": 2}, available_resources=lambda: {"GPU": free})
    said = waits_for_gpu(ray, device, share)
    assert line in said if line else not said
