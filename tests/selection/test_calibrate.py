"""Fitting a bundle's calibrator on real shards: which photos are opened, and what the bundle gets."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import pytest

from fss_models import registry
from fss_models.errors import FssError
from pipelines.bundles.bundle import bundle_calibrator, read_bundle_info, save_bundle
from pipelines.config.choose import CalibrateConfig
from pipelines.config.recipe import Recipe
from pipelines.data.shardset import Shards
from pipelines.selection.calibrate import calibrate_bundle, calibrate_refit, draw_sets
from tests.fss_models.methods_here import needs_transformers


@pytest.fixture
def shards(shapes_shards: str) -> Shards:
    return Shards(shapes_shards)


def test_draws_open_train_photos_only_and_fresh_ones_first(shards: Shards) -> None:
    """Would catch a calibrator that is fitted on test photos, or on photos that were called wrongly."""
    train = {row["image_id"]: row for row in shards.images("train")}
    classes = shards.base_classes(0)
    seen = [row["sha256"][:16] for i, row in train.items() if i % 2]
    draws = draw_sets(shards, classes, CalibrateConfig(sets=40, targets=3), seen=seen)
    assert draws == draw_sets(shards, classes, CalibrateConfig(sets=40, targets=3), seen=seen)
    assert {d.class_id for d in draws} == set(classes)
    assert {len(d.shots) for d in draws} > {1}
    for d in draws:
        assert {*d.shots, *d.present, *d.absent} <= train.keys()
        assert not set(d.shots) & set(d.present)
        assert all(d.class_id in train[i]["class_ids"] for i in (*d.shots, *d.present))
        assert not any(d.class_id in train[i]["class_ids"] for i in d.absent)
    fresh = [train[i]["sha256"][:16] not in seen for d in draws for i in d.absent]
    assert all(fresh)


def test_a_bundle_gets_a_calibrator_and_stays_the_same_model(shards: Shards, tmp_path: object) -> None:
    url = f"{tmp_path}/bundle"
    base = [shards.classes[c].name for c in shards.base_classes(0)]
    before = save_bundle(url, registry.build("prior", "nano"), classes=base)
    assert bundle_calibrator(url, before) is None
    info, made = calibrate_bundle(url, shards, CalibrateConfig(sets=24, targets=2))
    assert info == read_bundle_info(url)
    assert info.bundle_id == before.bundle_id
    again = bundle_calibrator(url, info)
    assert again is not None
    assert again.about == made.about
    assert int(made.about["classes"]) == len(base)
    assert 0.5 < float(made.about["auroc_presence"]) <= 1
    first = info.calibrator
    assert calibrate_bundle(url, shards, CalibrateConfig(sets=24, targets=2))[0].calibrator == first


@needs_transformers
@pytest.mark.parametrize("mode", ["canvas", "token"])
def test_sam3_gets_a_calibrator(mode: str, shards: Shards, tmp_path: object) -> None:
    """A canvas says nothing about one photo: photos are compared by their colours."""
    url = f"{tmp_path}/bundle"
    save_bundle(url, registry.build("sam3", "debug", {"mode": mode}))
    info, made = calibrate_bundle(url, shards, CalibrateConfig(sets=12, targets=2))
    assert bundle_calibrator(url, info) is not None
    assert int(made.about["classes"]) > 0


def test_classes_without_photos_are_told(shards: Shards) -> None:
    with pytest.raises(FssError, match="no class has two train photos"):
        draw_sets(shards, [], CalibrateConfig(sets=4))


class Here:
    """Stands in for Ray: runs the task in this process."""

    def remote(self, function: Any) -> Any:
        task = SimpleNamespace(remote=function)
        return SimpleNamespace(options=lambda **_: task)

    def get(self, answer: Any) -> Any:
        return pickle.loads(pickle.dumps(answer))


def test_only_too_few_photos_leave_a_refit_uncalibrated(
        shards: Shards, tmp_path: object, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Would catch a champion without a calibrator that is published because a bucket was away for a moment."""
    url, recipe = f"{tmp_path}/bundle", Recipe(calibrate=CalibrateConfig(sets=4))
    save_bundle(url, registry.build("prior", "nano"))
    with pytest.raises(FssError, match="none"):
        calibrate_refit(recipe, url, f"{tmp_path}/none", Here())
    assert "not calibrated" not in capfd.readouterr().err
    monkeypatch.setattr("pipelines.selection.calibrate.draw_sets", lambda *_, **__: [])
    calibrate_refit(recipe, url, shards.url, Here())
    assert "the champion is not calibrated: " in capfd.readouterr().err
    assert not read_bundle_info(url).calibrator
