"""Weights that ship count as a checkpoint for every method, and are refused where they are not what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fss_models import registry
from fss_models.backbones.efficientnet import WEIGHTS_NAME
from fss_models.errors import FssError
from fss_models.presets import RANDOM
from fss_models.sam2_core.build import OBJECT_SCORE_KEYS, TRUNK, build_sam2, origin
from fss_models.shipped.files import find_weights, list_weights, shipped_folder
from tests.fss_models import debug_outputs as fixed
from tests.fss_models.shipped_case import PHOTOS, random_state, ship_random

BUILT_ON_SAM2 = ("sansa", "sam2_frozen", "fssam", "fcp", "vrp_sam")
SETTINGS: dict[str, dict[str, Any]] = {"fcp": {"feature_dropout": 0.0}, "vrp_sam": {"feature_dropout": 0.0}}


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with random nano weights, which the process takes for the package's."""
    ship_random(tmp_path / "shipped", seed=7)
    monkeypatch.setenv("FSS_SHIPPED", str(tmp_path / "shipped"))
    return tmp_path / "shipped"


@pytest.fixture
def nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation without shipped weights."""
    monkeypatch.setenv("FSS_SHIPPED", str(tmp_path / "empty"))


def sam_of(model: Any) -> Any:
    return model.core.sam if hasattr(model, "core") else model.sam.core.sam


def rest(names: set[str]) -> set[str]:
    """Trained tensors that `shipped` holds, by SAM 2's names."""
    held = random_state().keys()
    return {n.split("core.sam.")[-1] for n in names} & held


def test_the_shipped_file_is_loaded_in_full_precision(shipped: Path) -> None:
    held = load_file(shipped / "nano.safetensors")
    assert {v.dtype for v in held.values() if v.is_floating_point()} == {torch.float16}
    assert not any(k.startswith(TRUNK) for k in held)
    for scores in (True, False):
        state = build_sam2("nano", object_scores=scores).state_dict()
        assert held.keys() - state.keys() == (set() if scores else OBJECT_SCORE_KEYS)
        assert {k for k in state if not k.startswith(TRUNK)} <= held.keys()
        assert all(state[k].dtype == torch.float32 and torch.equal(state[k], held[k].float())
                   for k in held.keys() & state.keys())
    plain = build_sam2("nano", weights=RANDOM)
    key = next(k for k in plain.state_dict() if k.startswith(TRUNK))
    assert torch.equal(plain.state_dict()[key], build_sam2("nano").state_dict()[key]), "the trunk is ImageNet's"


def test_other_presets_have_none(shipped: Path) -> None:
    assert not origin(build_sam2("debug")).checkpoint
    assert registry.build("sansa", "debug").untrained


@pytest.mark.parametrize("method", BUILT_ON_SAM2)
def test_shipped_weights_count_as_a_checkpoint(method: str, shipped: Path) -> None:
    model = registry.build(method, "nano")
    found = find_weights("nano")
    assert found is not None
    assert not model.untrained
    assert not model.keeps_random_parts
    assert model.frozen_weights()["fss-nano"] == found.provenance.sha256
    assert WEIGHTS_NAME in model.frozen_weights()
    given = registry.build(method, "nano", weights=str(shipped / "nano.safetensors"))
    assert not given.untrained
    assert "fss-nano" not in given.frozen_weights(), "a file that was given is recorded by whoever gave it"
    assert given.trainable_names() == model.trainable_names()
    random = registry.build(method, "nano", weights=RANDOM)
    assert random.untrained
    assert list(random.frozen_weights()) == [WEIGHTS_NAME]


def test_what_is_trained_above_shipped_weights(shipped: Path) -> None:
    """SANSA: adapters alone. FSSAM: the published set. FCP and VRP-SAM: their encoder alone."""
    assert all(".adapter." in n for n in registry.build("sansa", "nano").trainable_names())
    fssam: Any = registry.build("fssam", "nano")
    assert fssam.train_mode == "published"
    assert {n.split(".")[2] for n in fssam.trainable_names()} == {"sam_mask_decoder", "memory_encoder",
                                                                  "memory_attention"}
    for method in ("fcp", "vrp_sam"):
        assert all(n.startswith("encoder.") for n in registry.build(method, "nano").trainable_names())
    for method in BUILT_ON_SAM2:
        trains = registry.method_class(method).trains
        assert bool(rest(registry.build(method, "nano", weights=RANDOM).trainable_names())) == trains


@pytest.mark.parametrize("method", ["sansa", "fssam", "fcp", "vrp_sam"])
def test_a_step_trains_everything_that_is_trained(method: str, shipped: Path) -> None:
    model: Any = registry.build(method, "nano", SETTINGS.get(method)).train()
    sum(model.losses(fixed.clip(model, targets=1)).values()).backward()
    missing = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    unreached = ("conv_s0", "conv_s1", "iou_prediction_head", "pred_obj_score_head")  # the official optimiser has them
    assert [n for n in missing if not (method == "fssam" and any(u in n for u in unreached))] == []


@pytest.mark.parametrize("method", ["prior", *BUILT_ON_SAM2])
def test_without_shipped_weights_nothing_changes(method: str, nothing: None) -> None:
    """No file and `random` are the same model, drawn from the same seed."""
    plain, random = registry.build(method, "nano", seed=3), registry.build(method, "nano", weights=RANDOM, seed=3)
    assert plain.untrained == random.untrained == (method != "prior")
    assert plain.trainable_names() == random.trainable_names()
    other = random.state_dict()
    assert all(torch.equal(v, other[k]) for k, v in plain.state_dict().items())


def test_the_training_free_prior_does_not_depend_on_them(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = registry.build("prior", "nano")
    monkeypatch.setenv("FSS_SHIPPED", str(shipped / "empty"))
    after = registry.build("prior", "nano")
    assert before.frozen_weights() == after.frozen_weights()
    assert not before.untrained
    assert all(torch.equal(v, after.state_dict()[k]) for k, v in before.state_dict().items())


def test_object_scores_of_shipped_weights_stay_as_they_are(shipped: Path) -> None:
    """FSSAM forces the object score on only where nothing trained it."""
    bias = "sam_mask_decoder.pred_obj_score_head.layers.2.bias"
    held = load_file(shipped / "nano.safetensors")[bias].float()
    assert torch.equal(sam_of(registry.build("fssam", "nano")).state_dict()[bias], held)
    assert sam_of(registry.build("fssam", "nano", weights=RANDOM)).state_dict()[bias].item() == 10


def test_provenance_is_read_back(shipped: Path) -> None:
    (found,) = list_weights(shipped)
    assert (found.name, found.provenance.photos) == ("nano", list(PHOTOS))
    assert found.provenance == ship_random(shipped, seed=7)
    assert shipped_folder() == shipped


@pytest.mark.parametrize(("change", "line"), [
    ({"sha256": "x"}, "sha256 is 'x'"), ({"sha256": "0" * 64}, "sha256 is .*nano.json says 0000.*reinstall"),
    ({"file": "other.safetensors"}, "describes 'other.safetensors'"), ({"more": 1}, "has unknown 'more'"),
    ({"steps": None}, "lacks 'steps'"), ({"data": [{"name": "a", "licence": "b", "photos": ["zz"]}]}, "'zz' is not"),
])
def test_a_damaged_installation_is_one_line(shipped: Path, change: dict[str, Any], line: str) -> None:
    about = shipped / "nano.json"
    content = json.loads(about.read_text()) | change
    about.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    with pytest.raises(FssError, match=line):
        registry.build("sansa", "nano")
    registry.build("sansa", "nano", weights=RANDOM)


def test_weights_without_provenance_are_refused(shipped: Path) -> None:
    (shipped / "nano.json").unlink()
    with pytest.raises(FssError, match=r"nano\.json is missing"):
        registry.build("sansa", "nano")


def test_what_cannot_be_shipped_writes_nothing(tmp_path: Path) -> None:
    for state, changes, line in (({"a": torch.tensor([1e6])}, {}, "not finite in half precision"),
                                 ({"a": torch.zeros(1)}, {"data": ({"photos": ["zz"]},)}, "lacks")):
        with pytest.raises((FssError, TypeError), match=line):
            _ship(state, tmp_path / "out", changes)
    assert not (tmp_path / "out").exists()


def test_a_safetensors_checkpoint_names_its_first_wrong_key(shipped: Path, tmp_path: Path) -> None:
    state = load_file(shipped / "nano.safetensors")
    trunk = {k: v.contiguous() for k, v in build_sam2("nano").state_dict().items() if k.startswith(TRUNK)}
    cases = {"lacks 'no_mem_embed'": {k: v for k, v in state.items() if k != "no_mem_embed"},
             "unknown 'extra'": state | {"extra": torch.zeros(1)},
             "'no_mem_embed' has shape": state | {"no_mem_embed": torch.zeros(1)},
             "lacks 'image_encoder.trunk.": state | dict(list(trunk.items())[:1])}
    for line, wrong in cases.items():
        save_file(wrong, tmp_path / "wrong.safetensors")
        with pytest.raises(FssError, match=line):
            build_sam2("nano", weights=str(tmp_path / "wrong.safetensors"))
    save_file(state | trunk, tmp_path / "whole.safetensors")
    build_sam2("nano", weights=str(tmp_path / "whole.safetensors"))


def _ship(state: dict[str, torch.Tensor], folder: Path, changes: dict[str, Any]) -> None:
    from fss_models.shipped.files import write_weights

    about = {"data": (), "recipe": {}, "commit": "", "seeds": (), "steps": 0, "seconds": 0.0, "hardware": "",
             "quality": {}, "licence": "", "created": ""}
    write_weights("nano", state, folder=folder, **(about | changes))
