"""Settings that are `auto`: from the manifest, from the service, or measured with the job's photos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fss_models.limits import LIMITS
from fss_models.marks import rle_json
from pipelines.base.storage import Store
from pipelines.config.computing import Computing
from pipelines.config.label import LabelConfig, ServiceSettings
from pipelines.config.recipe import Recipe
from pipelines.inference.labeler import Labeler
from pipelines.inference.supports import Support, SupportSet
from pipelines.labelling import settle as module
from pipelines.labelling.images import list_images
from pipelines.labelling.run import describe_job
from pipelines.labelling.settle import differs, fastest_batch, settle
from tests.serving.helpers import ball, encoded

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
    return {"bundle": "", "classes": classes(), "images": list_images(str(tmp_path / "photos")), "limits": LIMITS}


def test_a_service_that_differs_is_named() -> None:
    fits = LabelConfig(batch=4, precision="bfloat16", preprocessing="fast")
    assert differs(HEALTH, fits) == ""
    assert differs(HEALTH, AUTO) == ""
    assert differs(HEALTH, LabelConfig(batch=4)) == "precision"
    assert differs(HEALTH, LabelConfig(batch=8)) == "batch"
    assert differs({"batch": 8}, LabelConfig()) == ""  # a service of an older version


def test_a_job_of_a_service_takes_its_settings(job: dict[str, Any], tmp_path: Path) -> None:
    found, measured = settle(AUTO, Store(str(tmp_path / "out")), HEALTH, **job)
    assert found.computing() == {k: HEALTH[k] for k in ("precision", "compile", "preprocessing")}
    assert (found.batch, measured) == (4, {})


def test_a_job_that_goes_on_keeps_its_settings(job: dict[str, Any], tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine, or another day, would measure something else."""
    monkeypatch.setattr(module, "_on_device", lambda *_: pytest.fail("measured again"))
    out = Store(str(tmp_path / "out"))
    out.write_json("manifest.json", {"batch": 2, "precision": "bfloat16", "agreement": 0.5})
    found, measured = settle(AUTO, out, None, **job)
    assert (found.batch, found.precision, found.preprocessing) == (2, "bfloat16", "bundle")
    assert measured == {"agreement": 0.5}


def test_settings_are_measured(job: dict[str, Any], bundle: str, tmp_path: Path,
                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(module, "CPU_BATCHES", (1, 2))
    found, measured = settle(AUTO, Store(str(tmp_path / "out")), None, **{**job, "bundle": bundle})
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
