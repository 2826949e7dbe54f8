"""BAM and HDMNet equal the official implementations, and would not if they were built a little differently."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fss_models.base_learner import ensemble, learner
from fss_models.base_learner import segmenter as joined
from fss_models.base_learner.head import PyramidPooling
from fss_models.clip import Images
from fss_models.methods.bam import decoder as bam_decoder
from fss_models.methods.bam import model as bam_model
from fss_models.methods.hdmnet import blocks, losses
from fss_models.methods.hdmnet import model as hdmnet_model
from fss_models.prior_guided import segmenter
from fss_models.verification import bam, hdmnet
from fss_models.verification.frame import GoldenCheck, run_folder
from tests.fss_models.shared_folder import GOLDEN, needs_golden

OWN = Path(__file__).parents[1] / "golden"
RUN_CASE = {"bam": bam.run_case, "hdmnet": hdmnet.run_case}
Patch = pytest.MonkeyPatch
Mistake = Callable[[Patch], None]


def checks_of(method: str, case: str) -> list[GoldenCheck]:
    about = json.loads((OWN / method / "cases.json").read_text())
    return list(RUN_CASE[method](OWN / method, case, about[case]))


@needs_golden
@pytest.mark.parametrize("method", RUN_CASE)
def test_every_golden_case_passes(method: str) -> None:
    checks = list(run_folder(GOLDEN / method))
    assert [c for c in checks if not c.passed] == []
    assert {c.case for c in checks} == set(json.loads((GOLDEN / method / "cases.json").read_text()))


@pytest.mark.parametrize(("method", "least"), [("bam", 35), ("hdmnet", 40)])
def test_our_methods_give_the_official_tensors(method: str, least: int) -> None:
    checks = list(run_folder(OWN / method))
    assert len(checks) >= least
    assert [c for c in checks if not c.passed] == []


def setting(module: Any, config: str, **values: Any) -> Mistake:
    """Other values of settings than the released code's."""
    def mistake(patch: Patch) -> None:
        original = getattr(module, config)
        patch.setattr(module, config, lambda **given: original(**(given | values)))

    return mistake


def constant(module: Any, name: str, value: Any) -> Mistake:
    return lambda patch: patch.setattr(module, name, value)


def other_dilation(module: Any) -> Mistake:
    def mistake(patch: Patch) -> None:
        original = module.case_trunk

        def trunk(case: Any) -> Any:
            return original(case, dilation="torchvision")

        patch.setattr(module, "case_trunk", trunk)

    return mistake


def statistics_move(patch: Patch) -> None:
    """The base learner's normalisations in batch mode while the meta learner is trained."""
    patch.setattr(bam, "build", lambda case, original=bam.build: _moving(original(case)))


def _moving(model: Any) -> Any:
    def train(mode: bool = True) -> Any:
        nn.Module.train(model, mode)
        model.base_head.eval = lambda: [m.eval() for m in model.base_head.modules() if isinstance(m, nn.Dropout2d)]
        return model

    model.train = train
    return model


def prior_not_stretched(patch: Patch) -> None:
    patch.setattr(segmenter, "min_max", lambda maps: maps)


def own_class_is_background(patch: Patch) -> None:
    original = ensemble.Ensemble.forward
    patch.setattr(ensemble.Ensemble, "forward", lambda self, meta, base, psi, own=None: original(self, meta, base, psi))


def difference_of_layer3(patch: Patch) -> None:
    def scenes(self: Any, features: Any, image: Tensor) -> Tensor:
        return ensemble.gram(features.maps["high"][image])

    patch.setattr(joined.BaseLearnerSegmenter, "scenes", scenes)


def difference_not_divided(patch: Patch) -> None:
    patch.setattr(joined, "scene_difference", lambda query, support: (query - support).flatten(1).norm(dim=1))


def shot_weights(order: ensemble.Order) -> Mistake:
    """The other order of the learnt weights."""
    def mistake(patch: Patch) -> None:
        original = ensemble.ShotWeights.__init__
        patch.setattr(ensemble.ShotWeights, "__init__", lambda self, shots, given="": original(self, shots, order))

    return mistake


def pooled_without_corners(patch: Patch) -> None:
    def forward(self: Any, top: Tensor) -> Tensor:
        size = top.shape[-2:]
        return torch.cat([top, *(F.interpolate(f(top), size=size, mode="bilinear") for f in self.features)], dim=1)

    patch.setattr(PyramidPooling, "forward", forward)


def trunk_keeps_its_statistics(patch: Patch) -> None:
    original = learner.BaseLearner.train

    def train(self: Any, mode: bool = True) -> Any:
        original(self, mode)
        self.backbone.eval()
        return self

    patch.setattr(learner.BaseLearner, "train", train)


def head_as_slow_as_the_trunk(patch: Patch) -> None:
    original = learner.BaseLearner.__init__
    patch.setattr(learner.BaseLearner, "__init__", lambda self, *given: original(self, *given, head_factor=1.0))


def mean_view_from_the_maximum(patch: Patch) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        first, *others = self.children()
        return torch.cat([first(x.amax(dim=(2, 3), keepdim=True)).expand_as(x), *(v(x) for v in others)], dim=1)

    patch.setattr(bam_decoder.Aspp, "forward", forward)


def support_photo_not_masked(patch: Patch) -> None:
    original = hdmnet_model.Hdmnet.describe_support

    def describe(self: Any, pixels: Tensor, masks: Tensor) -> Any:
        plain = self.finish(self.encode_frozen(Images(pixels=pixels, sizes=torch.zeros(len(pixels), 2))))
        patch.setattr(self, "encode_frozen", lambda images: plain)
        return original(self, pixels, masks)

    patch.setattr(hdmnet_model.Hdmnet, "describe_support", describe)


def softmax_over_the_support(patch: Patch) -> None:
    def forward(self: Any, query: Tensor, support: Tensor, mask: Tensor) -> Any:
        q, k, v = self.attn.split(query, support)
        scores = F.normalize(q, dim=3) @ F.normalize(k, dim=3).transpose(2, 3) / blocks.TEMPERATURE
        cells = mask[:, None, None]
        seen = (scores * cells).sum(dim=3) / (cells.sum(dim=3) + blocks.AREA_EPSILON)
        return self.attn.join((scores.softmax(dim=3) * cells) @ v), seen.mean(dim=1)

    patch.setattr(blocks.MatchingAttention, "forward", forward)


def decoded_with_corners(patch: Patch) -> None:
    original = F.interpolate

    def other(maps: Tensor, **given: Any) -> Tensor:
        return original(maps, **(given | ({"align_corners": True} if given.get("mode") == "bilinear" else {})))

    patch.setattr(F, "interpolate", other)


def teacher_learns_too(patch: Patch) -> None:
    patch.setattr(Tensor, "detach", lambda self: self)


def finest_teaches(patch: Patch) -> None:
    original = losses.distillation
    patch.setattr(hdmnet, "distillation", lambda correlation, label: original(correlation[::-1], label))


MISTAKES: dict[str, dict[str, tuple[str, Mistake]]] = {  # method -> name -> (case, mistake)
    "bam": {
        "dilation": ("case_b_5shot", other_dilation(bam)), "prior": ("case_b_5shot", prior_not_stretched),
        "order of shots": ("case_b_5shot", shot_weights("official")), "layer3": ("case_b_5shot", difference_of_layer3),
        "difference": ("case_b_5shot", difference_not_divided), "pooling": ("case_b_5shot", pooled_without_corners),
        "own class": ("case_c_train", own_class_is_background), "statistics": ("case_c_train", statistics_move),
        "meta": ("case_c_train", setting(bam, "BamConfig", meta_weight=0.5)),
        "head": ("case_e_base_train", head_as_slow_as_the_trunk),
        "batch": ("case_e_base_train", trunk_keeps_its_statistics),
        "mean": ("case_u_aspp", mean_view_from_the_maximum),
        "dilations": ("case_u_aspp", constant(bam_decoder, "DILATIONS", (6, 12, 17))),
        "masks": ("case_b_5shot", constant(bam_model, "resize_aligned", lambda x, size: F.interpolate(x, tuple(size)))),
    },
    "hdmnet": {
        "masked": ("case_b_5shot", support_photo_not_masked), "softmax": ("case_b_5shot", softmax_over_the_support),
        "order of shots": ("case_b_5shot", shot_weights("restored")),
        "temperature": ("case_b_5shot", constant(blocks, "TEMPERATURE", 0.2)),
        "gain": ("case_b_5shot", constant(hdmnet_model, "PRIOR_GAIN", 1.0)),
        "corners": ("case_b_5shot", decoded_with_corners),
        "normalisation": ("case_c_train", setting(hdmnet, "HdmnetConfig", decoder_bn="trained")),
        "teacher": ("case_c_train", finest_teaches), "gradient": ("case_c_train", teacher_learns_too),
        "rates": ("case_c_train", constant(hdmnet_model, "OTHERS_FACTOR", 1.0)),
        "own class": ("case_c_train", own_class_is_background),
    },
}


@pytest.mark.parametrize(("method", "mistake"), [(m, name) for m, each in MISTAKES.items() for name in each])
def test_a_mistake_makes_a_golden_case_fail(method: str, mistake: str, monkeypatch: Patch) -> None:
    case, change = MISTAKES[method][mistake]
    change(monkeypatch)
    assert any(c.mistaken and c.tolerance > 0 for c in checks_of(method, case))
