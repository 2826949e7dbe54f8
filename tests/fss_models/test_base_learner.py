"""BAM and HDMNet beside their golden cases: official checkpoints, number of classes and shots, nano's kept features."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fss_models import registry
from fss_models.base_learner.ensemble import ShotWeights
from fss_models.base_learner.official import read_base_learner
from fss_models.base_learner.segmenter import BaseLearnerSegmenter
from fss_models.errors import FssError
from fss_models.methods.bam import official as bam_official
from fss_models.methods.hdmnet import official as hdmnet_official
from fss_models.prototype_prompts.official import PREFIX
from fss_models.verification import bam, hdmnet
from fss_models.verification.prompting import GoldenCase
from tests.fss_models.shared_folder import GOLDEN, needs_golden
from tests.fss_models.test_contract import clip_for

OWN = Path(__file__).parents[1] / "golden"
OFFICIAL = {"bam": bam_official, "hdmnet": hdmnet_official}
BUILD = {"bam": bam.build, "hdmnet": hdmnet.build}
METHODS = list(OFFICIAL)


def on_meta(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    return {PREFIX + k: torch.empty(shape, device="meta") for k, shape in shapes.items()}


@needs_golden
@pytest.mark.parametrize(("method", "kind"), [
    *((m, k) for m in METHODS for k in ("resnet50_pascal_1shot", "resnet50_pascal_5shot", "resnet50_coco_1shot")),
    ("bam", "vgg16_pascal_1shot")])
def test_every_key_and_shape_of_an_official_file_is_ours(method: str, kind: str) -> None:
    layouts = json.loads((GOLDEN / method / "official_state_dict_layout.json").read_text())
    about = layouts[kind]
    given = on_meta(about["keys"] if "keys" in about else layouts[about["as"]]["keys"] | about["differs"])
    found = OFFICIAL[method].read(given, kind.split("_")[0])
    assert len(found.state) == len(given)
    assert found.config == {"shots": 5 if "5shot" in kind else 1}
    lost = f"{PREFIX}down_query.0.weight"
    for wrong, message in (({k: v for k, v in given.items() if k != lost}, r"lacks 'down_query\.0\.weight'"),
                           (given | {"other.weight": torch.zeros(1)}, r"unknown 'other\.weight'"),
                           (given | {lost: torch.zeros(2, 2)}, r"'down_query\.0\.weight' has shape \(2, 2\)")):
        with pytest.raises(FssError, match=message):
            OFFICIAL[method].read(wrong, kind.split("_")[0])


@pytest.mark.parametrize("method", METHODS)
def test_a_model_is_written_as_its_official_file(method: str) -> None:
    case = GoldenCase.load(OWN / method, "case_b_5shot")
    module: Any = OFFICIAL[method]
    written = module.write(BUILD[method](case))
    assert written.keys() == {PREFIX + k for k in case.model}
    assert all(torch.equal(written[PREFIX + k], v) for k, v in case.model.items())
    with pytest.raises(FssError, match="there is no official checkpoint of preset 'nano'"):
        module.read(written, "nano")


def test_an_official_base_learner_holds_its_trunk_twice() -> None:
    given = load_file(OWN / "bam" / "case_e_base_train" / "weights.safetensors")
    state = {f"{PREFIX}{k.removeprefix('model.')}": v for k, v in given.items()}
    found = read_base_learner(state | {f"{PREFIX}encoder.0.0.weight": torch.zeros(1)})
    assert found.keys() == {k.removeprefix("model.") for k in given}
    with pytest.raises(FssError, match=r"lacks 'cls\.4\.weight'"):
        read_base_learner({"layer0.0.weight": torch.zeros(1)})


@pytest.mark.parametrize("method", METHODS)
def test_a_state_brings_its_number_of_base_classes(method: str) -> None:
    """A bundle of COCO-20i has 60 base classes; its configuration does not say so."""
    source, copy = registry.build(method, "debug", seed=1), registry.build(method, "debug", seed=2)
    assert isinstance(source, BaseLearnerSegmenter)
    source.base_head.fit_classifier({"cls.4.weight": torch.zeros(61, 32, 1, 1)})
    copy.load_trainable_state(source.trainable_state())
    assert isinstance(copy, BaseLearnerSegmenter)
    assert copy.base_head.classes == 60
    assert not any(p.requires_grad for p in copy.base_head.parameters())
    with pytest.raises(FssError, match=r"has shape \(61, 31, 1, 1\)"):
        copy.load_trainable_state(source.trainable_state() | {"base_head.cls.4.weight": torch.zeros(61, 31, 1, 1)})


@pytest.mark.parametrize("order", ["restored", "official"])
def test_weights_of_shots(order: Any) -> None:
    """Learnt for pairs with the learnt number of shots, equal for others; only the restored order follows the shots."""
    torch.manual_seed(0)
    weigh = ShotWeights(3, order)
    psi = torch.tensor([[0.3, 0.1, 0.2], [0.1, 0.2, 0.3], [0.5, 0.4, 0.0]])
    found = weigh(psi, torch.tensor([3, 3, 2]))
    torch.testing.assert_close(found.sum(dim=1), torch.ones(3))
    torch.testing.assert_close(found[2], torch.tensor([0.5, 0.5, 0.0]))
    moved = found[1][[2, 0, 1]] if order == "restored" else found[1]
    torch.testing.assert_close(found[0], moved)


@pytest.mark.parametrize("method", METHODS)
def test_nano_trains_on_its_frozen_trunk(method: str) -> None:
    """Kept features give BAM's losses; HDMNet keeps none. Neither trains nor stores the trunk."""
    model = registry.build(method, "nano", {"side": 128}).eval()
    assert not [n for n in model.trainable_names() if n.startswith("backbone.")]
    clip = clip_for(model, shots=1, targets=1)
    with torch.no_grad():
        whole = model.losses(clip)
    assert bool(model.frozen_part()) == (method == "bam")
    if method == "bam":
        with torch.no_grad():
            kept = model.losses(replace(clip, frozen=model.encode_frozen(clip.images)))
        assert {k: v.item() for k, v in kept.items()} == pytest.approx({k: v.item() for k, v in whole.items()})


@pytest.mark.parametrize("method", METHODS)
def test_what_they_do_not_take_is_said(method: str) -> None:
    with pytest.raises(FssError, match="takes no weights"):
        registry.build(method, "debug", weights="resnet50_v2.pth")
    with pytest.raises(FssError, match="shots is 0"):
        registry.build(method, "debug", {"shots": 0})
    with pytest.raises(FssError, match="kshot_order is 'other'"):
        registry.build("hdmnet", "debug", {"kshot_order": "other"})
    with pytest.raises(FssError, match="builds on no base learner"):
        registry.build("prior", "debug").load_base_learner({}, {})
    model = registry.build(method, "debug")
    with pytest.raises(FssError, match=r"base learner lacks 'cls\.0\.weight'"):
        model.load_base_learner({}, {})
