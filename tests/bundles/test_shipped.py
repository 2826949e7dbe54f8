"""Bundles on shipped weights, bundles that ship, and what is in the package: sizes, hashes, no test photo."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fss_models import registry
from fss_models.errors import FssError
from fss_models.presets import RANDOM
from fss_models.shipped.files import TrainingData, bundle_url, list_weights
from pipelines.base.workspace import Workspace
from pipelines.bundles.bundle import load_bundle, read_bundle_info, save_bundle
from pipelines.bundles.shipped import (
    MAX_BYTES,
    champion_url,
    copy_bundle,
    list_bundles,
    shipped_bytes,
    shipped_problems,
)
from pipelines.bundles.weights import fetch, pretraining_photos
from pipelines.config.method import MethodConfig
from pipelines.config.recipe import Recipe
from pipelines.config.train import TrainConfig
from pipelines.sweeps.matrix import sweep_specs
from tests.bundles.test_bundle_and_weights import predict
from tests.fss_models.shipped_case import PHOTOS, ship_random

ROOT = Path(__file__).resolve().parents[2]
PACKAGED = ROOT / "fss_models" / "shipped"


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation with random nano weights and a champion on them."""
    folder = tmp_path / "shipped"
    ship_random(folder, seed=7)
    monkeypatch.setenv("FSS_SHIPPED", str(folder))
    save_bundle(str(folder / "champion"), moved("sansa"), half=True, dataset="shapes", classes=["star"])
    return folder


def moved(method: str, weights: str | None = None) -> registry.Segmenter:
    """A nano model whose trained tensors are not what they started as."""
    model = registry.build(method, "nano", weights=weights, seed=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


@pytest.mark.parametrize("method", ["sansa", "fssam", "fcp", "vrp_sam", "sam2_frozen"])
def test_a_bundle_on_shipped_weights_is_small_and_says_what_it_needs(method: str, shipped: Path,
                                                                     tmp_path: Path) -> None:
    model = moved(method)
    info = save_bundle(str(tmp_path / "b"), model)
    assert info.frozen["fss-nano"] == hashlib.sha256((shipped / "nano.safetensors").read_bytes()).hexdigest()
    assert info.pretrained_on == sorted(PHOTOS)
    assert not info.untrained
    loaded, _ = load_bundle(str(tmp_path / "b"))
    assert torch.equal(predict(model), predict(loaded))
    if method in ("sansa", "sam2_frozen"):
        assert (tmp_path / "b" / "model.safetensors").stat().st_size < 1_000_000
    other = save_bundle(str(tmp_path / "random"), registry.build(method, "nano", weights=RANDOM), weights=RANDOM)
    assert other.pretrained_on == []
    assert "fss-nano" not in other.frozen


def test_a_bundle_is_refused_where_other_weights_are_installed(shipped: Path, monkeypatch: pytest.MonkeyPatch,
                                                               tmp_path: Path) -> None:
    save_bundle(str(tmp_path / "b"), moved("sansa"))
    ship_random(shipped, seed=8)
    with pytest.raises(FssError, match=r"made with other shipped weights 'nano' \(sha256 .*, installed") as caught:
        load_bundle(str(tmp_path / "b"))
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("FSS_SHIPPED", str(tmp_path / "empty"))
    with pytest.raises(FssError, match=r"needs the shipped weights 'nano'.*not installed"):
        load_bundle(str(tmp_path / "b"))


@pytest.mark.parametrize("method", ["prior", "sansa", "fssam", "fcp", "vrp_sam", "sam2_frozen"])
def test_bundles_from_before_stay_what_they_were(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made where nothing shipped; the weights that are installed afterwards do not get into them."""
    monkeypatch.setenv("FSS_SHIPPED", str(tmp_path / "shipped"))
    model = moved(method)
    save_bundle(str(tmp_path / "b"), model)
    before = predict(model)
    ship_random(tmp_path / "shipped")
    assert torch.equal(before, predict(load_bundle(str(tmp_path / "b"))[0]))


def test_half_precision_halves_the_file_and_loads_in_full(shipped: Path, tmp_path: Path) -> None:
    model = moved("sansa")
    full = save_bundle(str(tmp_path / "full"), model, provenance={"spec": {"shards": "/home/me/voc", "fold": 1}})
    half = save_bundle(str(tmp_path / "half"), model, half=True)
    assert full.bundle_id != half.bundle_id
    sizes = [(tmp_path / n / "model.safetensors").stat().st_size for n in ("full", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    loaded, _ = load_bundle(str(tmp_path / "half"))
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    one, other = predict(model), predict(loaded)
    assert not torch.equal(one, other)
    torch.testing.assert_close(one, other, rtol=0, atol=float(one.abs().max()) * 0.02)
    copied = copy_bundle(str(tmp_path / "full"), str(tmp_path / "copy"), half=True)
    assert copied.tensors_sha256 == half.tensors_sha256
    assert copied.provenance == {"half_precision_of": full.bundle_id, "spec": {"shards": "voc", "fold": 1}}
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).fill_(1e6)
    with pytest.raises(FssError, match="not finite in half precision"):
        save_bundle(str(tmp_path / "huge"), model, half=True)
    assert not (tmp_path / "huge").exists()


def test_the_shipped_champion_stands_in_until_there_is_one(shipped: Path, tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace(str(tmp_path / "ws"))
    assert champion_url(workspace) == bundle_url("shipped") == bundle_url("shipped:champion")
    info = read_bundle_info(champion_url(workspace))
    assert info == read_bundle_info("shipped") == load_bundle("shipped:champion")[1]
    assert info.dataset == "shapes"
    save_bundle(workspace.champion, registry.build("prior", "nano"))
    assert champion_url(workspace) == workspace.champion
    assert bundle_url("some/where") == "some/where"
    with pytest.raises(FssError, match=r"no bundle 'folds/x' ships .*shipped bundles: champion"):
        bundle_url("shipped:folds/x")
    monkeypatch.setenv("FSS_SHIPPED", str(tmp_path / "empty"))
    other = Workspace(str(tmp_path / "other"))
    assert champion_url(other) == other.champion
    with pytest.raises(FssError, match="shipped bundles: none"):
        bundle_url("shipped")


def test_bundles_are_listed_and_copied_whole_or_not_at_all(shipped: Path, tmp_path: Path) -> None:
    copy_bundle(str(shipped / "champion"), str(shipped / "folds" / "sansa-f0"))
    found = list_bundles()
    assert [b.name for b in found] == ["champion", "folds/sansa-f0"]
    assert found[0].size == (shipped / "champion" / "model.safetensors").stat().st_size
    assert [b.name for b in list_bundles(str(shipped / "folds"))] == ["sansa-f0"]
    save_bundle(str(tmp_path / "other"), registry.build("prior", "nano"))
    with pytest.raises(FssError, match="already has another bundle"):
        copy_bundle(str(shipped / "champion"), str(tmp_path / "other"))
    (shipped / "champion" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(FssError, match="does not match"):
        copy_bundle(str(shipped / "champion"), str(tmp_path / "torn"))
    assert not (tmp_path / "torn").exists()


def test_runs_on_other_shipped_weights_are_other_runs(shipped: Path, tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """A workspace's results are not taken for those of new weights; without any, names are what they were."""
    def names(weights: str = "") -> set[str]:
        recipe = Recipe(methods=[MethodConfig(name="sansa", weights=weights)])
        return {s.name for s in sweep_specs(recipe, shards="s", data_hash="h", trains={0: TrainConfig()})}

    with_seven, random = names(), names(RANDOM)
    ship_random(shipped, seed=8)
    assert names() != with_seven
    assert names(RANDOM) == random
    monkeypatch.setenv("FSS_SHIPPED", str(tmp_path / "empty"))
    spec = sweep_specs(Recipe(methods=[MethodConfig(name="sansa")]), shards="s", data_hash="h",
                       trains={0: TrainConfig()})[0]
    assert spec.shipped == ""
    assert names() == {spec.name}
    assert not names() & with_seven


def test_random_is_no_file(shipped: Path) -> None:
    assert fetch(RANDOM) == RANDOM
    with pytest.raises(FssError, match="random values have no sha256"):
        fetch(RANDOM, "0" * 64)


def test_photos_of_a_pretraining_come_with_its_file(shipped: Path, tmp_path: Path) -> None:
    place = str(shipped / "nano.safetensors")
    assert pretraining_photos(place) == sorted(PHOTOS)
    info = save_bundle(str(tmp_path / "b"), registry.build("sansa", "nano", weights=place), weights=place,
                       sha256=hashlib.sha256(Path(place).read_bytes()).hexdigest())
    assert info.pretrained_on == sorted(PHOTOS)
    (tmp_path / "own.safetensors").write_bytes(Path(place).read_bytes())
    assert pretraining_photos(str(tmp_path / "own.safetensors")) == []
    (tmp_path / "own.json").write_text(json.dumps({"sha256": "0" * 64, "data": [{"photos": list(PHOTOS)}]}))
    with pytest.raises(FssError, match="about another file"):
        pretraining_photos(str(tmp_path / "own.safetensors"))


def test_problems_are_found(shipped: Path) -> None:
    assert shipped_problems(shipped) == []
    copy_bundle(str(shipped / "champion"), str(shipped / "folds" / "torn"))
    (shipped / "folds" / "torn" / "model.safetensors").write_bytes(b"torn")
    (shipped / "gone.json").write_text("{}")
    (shipped / "big.safetensors").write_bytes(bytes(MAX_BYTES))
    found = " | ".join(shipped_problems(shipped))
    for line in ("gone.json: the .safetensors file that it describes is missing",
                 "torn: model.safetensors does not match", "more than 30", "big.json is missing"):
        assert line in found
    ship_random(shipped, seed=8)
    assert "champion: was made with other shipped weights 'nano'" in " | ".join(shipped_problems(shipped))


# what is in the package


def test_what_the_package_ships_is_what_it_says() -> None:
    """At most 30 MB, every sha256 as its json says, every bundle on the weights beside it."""
    assert shipped_problems(PACKAGED) == []
    assert shipped_bytes(PACKAGED) <= MAX_BYTES
    for weights in list_weights(PACKAGED):
        about = weights.provenance
        assert about.photos, "what it was trained on"
        assert "research" in about.licence
        state = load_file(weights.path)
        assert {v.dtype for v in state.values() if v.is_floating_point()} == {torch.float16}
        assert not registry.build("sam2_frozen", weights.name, weights=str(weights.path)).untrained


def opened_test_photos(folder: Path, shared: Path) -> list[str]:
    """Test photos of the research data that shipped weights or bundles were trained on."""
    split = json.loads((shared / "data" / "splits.json").read_text())
    files = [shared / "data/coco_union/images" / n for n in split["coco_union"]["test"]]
    files += [shared / "data/voc_train/JPEGImages" / f"{n}.jpg" for n in split["voc_train"]["test"]]
    held_out = {hashlib.sha256(f.read_bytes()).hexdigest()[:16]: f.name for f in files}
    opened = {p for w in list_weights(folder) for p in w.provenance.photos}
    opened |= {p for b in list_bundles(str(folder)) for p in b.info.seen}
    return sorted(held_out[p] for p in held_out.keys() & opened)


def test_nothing_that_ships_was_trained_on_a_test_photo(shared: Path, shipped: Path) -> None:
    assert opened_test_photos(PACKAGED, shared) == []
    name = json.loads((shared / "data" / "splits.json").read_text())["voc_train"]["test"][0]
    photo = hashlib.sha256((shared / "data/voc_train/JPEGImages" / f"{name}.jpg").read_bytes()).hexdigest()[:16]
    ship_random(shipped, data=(TrainingData(name="voc", licence="", photos=(photo,)),))
    assert opened_test_photos(shipped, shared) == [f"{name}.jpg"]


def test_the_wheel_holds_what_ships(shipped: Path, tmp_path: Path) -> None:
    """Would catch a pattern that leaves weights or bundles out of an installation that is no checkout."""
    copy_bundle(str(shipped / "champion"), str(shipped / "folds" / "sansa-f0"))
    source = tmp_path / "source"
    for room in ("fss_models", "pipelines", "jobs", "infra"):
        shutil.copytree(ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(shipped, source / "fss_models" / "shipped", dirs_exist_ok=True)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-q", "-w", "wheel"]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = (source / "wheel").glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"fss_models/shipped/{p.relative_to(shipped)}" for p in shipped.rglob("*") if p.is_file()}
    assert len(wanted) == 6
    assert wanted <= held


def test_the_packages_champion_predicts(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the weights beside it, with a calibrator, naming no folder of the machine that made it."""
    monkeypatch.delenv("FSS_SHIPPED")
    model, info = load_bundle(bundle_url("shipped"))
    assert info.calibrator
    assert info.metrics["cross_validated"]["miou"] > 0.5
    assert not [v for v in re.findall(r'"(/[^"]*)"', info.model_dump_json()) if v != "/"]
    assert torch.isfinite(predict(model)).all()
