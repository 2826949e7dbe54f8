"""PFENet, SSP and CyCTR equal the official implementations, and would not if they were built a little differently."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fss_models.methods.cyctr import model as cyctr_model
from fss_models.methods.cyctr import transformer
from fss_models.methods.pfenet import model as pfenet_model
from fss_models.methods.ssp import self_support
from fss_models.methods.ssp.model import Ssp
from fss_models.prior_guided import blocks, segmenter
from fss_models.verification import cyctr, pfenet, prior_guided, ssp
from fss_models.verification.frame import GoldenCheck, run_folder
from tests.fss_models.shared_folder import GOLDEN, needs_golden

OWN = Path(__file__).parents[1] / "golden"
Patch = pytest.MonkeyPatch
Mistake = Callable[[Patch], None]


@needs_golden
@pytest.mark.parametrize("method", ["pfenet", "ssp", "cyctr"])
def test_every_golden_case_passes(method: str) -> None:
    checks = list(run_folder(GOLDEN / method))
    assert [c for c in checks if not c.passed] == []
    assert {c.case for c in checks} == set(json.loads((GOLDEN / method / "cases.json").read_text()))


def other_dilation(patch: Patch) -> None:
    original: Any = prior_guided.case_trunk

    def trunk(case: Any, *, dilation: str = "all_blocks", signed: bool = False) -> Any:
        wrong = "torchvision" if dilation == "all_blocks" else "all_blocks"
        return original(case, dilation=wrong, signed=signed)

    patch.setattr(prior_guided, "case_trunk", trunk)


def setting(module: Any, config: str, **values: Any) -> Mistake:
    """Other values of settings than the released code's."""
    def mistake(patch: Patch) -> None:
        original = getattr(module, config)
        patch.setattr(module, config, lambda **given: original(**(given | values)))

    return mistake


def prior_not_stretched(patch: Patch) -> None:
    patch.setattr(segmenter, "min_max", lambda maps: maps)


def support_masked_once(patch: Patch) -> None:
    def top(self: Any, high: Tensor, masks: Tensor) -> Tensor:
        found: Tensor = self.backbone.top(high * segmenter.resize_aligned(masks, high.shape[-2:]))
        return found

    patch.setattr(segmenter.TrunkSegmenter, "masked_top", top)


def layers_swapped(patch: Patch) -> None:
    original = segmenter.TrunkSegmenter.fused
    patch.setattr(segmenter.TrunkSegmenter, "fused", lambda self, features, image, order=("high", "mid"): original(
        self, features, image, order[::-1]))


def masks_by_nearest_cell(module: Any) -> Mistake:
    def mistake(patch: Patch) -> None:
        patch.setattr(module, "resize_aligned", lambda maps, size: F.interpolate(maps, size=tuple(size)))

    return mistake


def refinement_without_residual(patch: Patch) -> None:
    patch.setattr(blocks.Refinement, "forward", nn.Sequential.forward)


def statistics_updated_twice(patch: Patch) -> None:
    original = pfenet_model.Pfenet._in_batch_mode
    patch.setattr(pfenet_model.Pfenet, "_in_batch_mode",
                  lambda self, clip: (original(self, clip), original(self, clip))[1])


def supports_before_the_query(patch: Patch) -> None:
    original = pfenet_model.Pfenet._in_batch_mode

    def reversed_order(self: Any, clip: Any) -> Any:
        memory, _ = original(self, clip)
        return memory, self.encode(clip.targets)

    patch.setattr(pfenet_model.Pfenet, "_in_batch_mode", reversed_order)


def layer3_ends_with_relu(patch: Patch) -> None:
    original: Any = prior_guided.case_trunk

    def trunk(case: Any, **given: Any) -> Any:
        made = original(case, **given)
        made.backbone.layer3[-1].act3 = nn.ReLU()
        return made

    patch.setattr(prior_guided, "case_trunk", trunk)


def void_is_background(patch: Patch) -> None:
    original = Ssp.reference_labels
    patch.setattr(Ssp, "reference_labels",
                  lambda self, clip: original(self, replace(clip, reference_ignore=None)))


def local_background_of_unit_features(patch: Patch) -> None:
    original = self_support.self_support

    def wrong(features: Tensor, logits: Tensor, config: Any) -> Any:
        found = original(features, logits, config)
        return replace(found, local=original(F.normalize(features, dim=1), logits, config).local)

    patch.setattr(self_support, "self_support", wrong)


def no_cell_is_barred(patch: Patch) -> None:
    patch.setattr(transformer.CycleAttention, "_consistent", staticmethod(
        lambda scores, is_object: torch.ones_like(scores[:, :, 0], dtype=torch.bool)))


def positions_count_padding(patch: Patch) -> None:
    original = transformer.CyctrTransformer.place
    patch.setattr(transformer.CyctrTransformer, "place",
                  lambda self, padded, width: original(self, torch.zeros_like(padded), width))


def offsets_row_first(patch: Patch) -> None:
    original = transformer.DeformableAlignment._centres
    patch.setattr(transformer.DeformableAlignment, "_centres", staticmethod(
        lambda height, breadth, like: original(height, breadth, like).flip(1)))


def dice_without_squares(patch: Patch) -> None:
    def dice(logits: Tensor, label: Tensor) -> Tensor:
        p = logits.sigmoid().flatten(2)
        t = torch.stack([label == 0, label == 1], dim=1).to(p).flatten(2)
        return (1 - 2 * (p * t).sum(2) / (p + t).sum(2)).sum(1).mean()

    patch.setattr(cyctr_model, "class_dice", dice)


def support_of_masked_features(patch: Patch) -> None:
    original = cyctr_model.Cyctr.describe

    def describe(self: Any, features: Any, prompts: Any, padded: Any) -> Any:
        masks = prompts.masks.flatten(0, 1)[:, None]
        high = features.maps["high"][prompts.image.flatten()]
        top = features.maps["top"].clone()
        top[prompts.image.flatten()] = self.masked_top(high, masks)
        changed = replace(features, maps=features.maps | {"top": top})
        return original(self, changed, prompts, padded)

    patch.setattr(cyctr_model.Cyctr, "describe", describe)


MISTAKES: dict[str, dict[str, Mistake]] = {
    "pfenet": {
        "dilation": other_dilation, "prior": prior_not_stretched, "masked once": support_masked_once,
        "order": layers_swapped, "masks": masks_by_nearest_cell(pfenet_model), "residual": refinement_without_residual,
        "statistics": setting(pfenet, "PfenetConfig", backbone_bn="frozen"), "updates": statistics_updated_twice,
        "passes": supports_before_the_query, "scales": setting(pfenet, "PfenetConfig", scales=(8, 5, 3, 1)),
        "aux": setting(pfenet, "PfenetConfig", aux_weight=4.0),
    },
    "ssp": {
        "dilation": other_dilation, "relu": layer3_ends_with_relu, "void": void_is_background,
        "thresholds": setting(ssp, "SspConfig", foreground_threshold=0.6, background_threshold=0.7),
        "temperature": setting(ssp, "SspConfig", local_temperature=1.0),
        "local": setting(ssp, "SspConfig", local_weight=0.3), "unit": local_background_of_unit_features,
        "rounds": setting(ssp, "SspConfig", first_weight=0.3, second_weight=0.2),
        "mix": setting(ssp, "SspConfig", refined_weight=0.3), "support": setting(ssp, "SspConfig", support_weight=1.0),
    },
    "cyctr": {
        "dilation": other_dilation, "prior": prior_not_stretched, "order": layers_swapped,
        "masked": support_of_masked_features, "flags": setting(cyctr, "CyctrConfig", sampling_flags="correct"),
        "cycle": no_cell_is_barred, "positions": positions_count_padding, "offsets": offsets_row_first,
        "dice": dice_without_squares, "aux": setting(cyctr, "CyctrConfig", aux_weight=0.5),
        "rate": setting(cyctr, "CyctrConfig", transformer_lr=1e-2),
        "residual": refinement_without_residual,
    },
}


@pytest.mark.parametrize(("method", "mistake"), [(m, name) for m, each in MISTAKES.items() for name in each])
def test_a_mistake_makes_a_golden_case_fail(method: str, mistake: str, monkeypatch: Patch) -> None:
    MISTAKES[method][mistake](monkeypatch)
    assert any(wrong(c) for c in run_folder(OWN / method))


def wrong(check: GoldenCheck) -> bool:
    """Whether a check of values, not of masks or coverage, shows a mistake."""
    return check.mistaken and check.tolerance > 0
