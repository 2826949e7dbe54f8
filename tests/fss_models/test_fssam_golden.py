"""FSSAM equals the official implementation, and would not if it were built a little differently.

Every mistake is made twice: against an official golden case, and against our own stored outputs (a 64 px episode whose
weights come from a formula), which need no research data.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fss_models.methods.fssam import attention, model
from fss_models.methods.fssam.core import FssamCore
from fss_models.methods.fssam.refine import QueryMemory, agreement, support_agreement
from fss_models.sam2_core.core import DecodedMasks
from fss_models.verification import tolerances
from fss_models.verification.figures import excess
from fss_models.verification.frame import GoldenCheck, run_folder
from fss_models.verification.fssam import check_case, clip_of, load_model, read_npz
from fss_models.verification.fssam_stages import observe
from fss_models.verification.tolerances import FSSAM_GRADIENT_RELATIVE, FSSAM_RELATIVE
from tests.fss_models import fssam_case
from tests.fss_models.shared_folder import GOLDEN, needs_golden

FOLDER = GOLDEN / "fssam"
GOLDEN_BOUNDS = tolerances.GOLDEN["fssam"]
BY_PRODUCTS = {"ppg/fg_sim_max", "ppg/corr_max", "mem/lowres_logits"}  # without effect, so not computed here


@needs_golden
def test_every_golden_case_passes() -> None:
    checks = list(run_folder(FOLDER))
    assert [c for c in checks if not c.passed] == []
    assert {c.case for c in checks} == {"A", "A_v2", "A_norefine", "B", "B_repaired", "C", "units", "episodes"}


@needs_golden
@pytest.mark.parametrize("name", ["A", "B", "C"])
@torch.no_grad()
def test_nothing_recorded_is_left_out(name: str) -> None:
    case = json.loads((FOLDER / "cases.json").read_text())[name]
    want = read_npz(FOLDER / case["file"])
    ours = observe(load_model(case, read_npz(FOLDER / case["state"])), clip_of(want), want)
    left = {k for k in want.keys() - ours.keys() if not k.startswith(("in/", "grad"))}
    assert {k.replace("sup_gt_", "").replace("qry_fg_", "").replace("qry_ae_", "") for k in left} <= BY_PRODUCTS


def test_a_folder_of_other_sizes_and_file_names_is_read_by_its_own_files(tmp_path: Path) -> None:
    """Two shots, two episodes, 64 px, two layers, two DINOv2 blocks: made here, so every check must pass."""
    recorded, state = _recording("repaired"), fssam_case.state()
    np.savez(tmp_path / "weights.npz", **{k: v.numpy() for k, v in state.items()})
    np.savez(tmp_path / "one.npz", **{k: v.numpy() for k, v in {**fssam_case.inputs(), **recorded}.items()})
    np.savez(tmp_path / "other.npz", **{k: v.numpy() for k, v in _recording("released").items()})
    case = fssam_case.CASE | {"method": "fssam", "file": "one.npz", "state": "weights.npz", "k_shot": "repaired",
                              "variants": {"other.npz": {"k_shot": "released"}}}
    (tmp_path / "cases.json").write_text(json.dumps({"X": case}))
    checks = list(run_folder(tmp_path))
    assert {c.case for c in checks} == {"one", "other"}
    assert all(c.passed for c in checks)
    case["variants"]["other.npz"]["k_shot"] = "repaired"
    (tmp_path / "cases.json").write_text(json.dumps({"X": case}))
    assert any(not c.passed for c in run_folder(tmp_path) if c.case == "other")


@pytest.mark.parametrize("variant", fssam_case.VARIANTS)
def test_the_stored_outputs_are_reproduced(variant: str) -> None:
    assert [c for c in _stored_checks(variant) if not c.passed] == []


def test_the_stored_gradients_are_reproduced() -> None:
    want = fssam_case.stored("train")
    ours = fssam_case.gradients(fssam_case.model(train=True))
    limits = {"gradients/loss": (FSSAM_RELATIVE, GOLDEN_BOUNDS["out/loss"]),
              "gradients/norms": (FSSAM_GRADIENT_RELATIVE, GOLDEN_BOUNDS["gradient norms"])}
    for name, (relative, bound) in limits.items():
        assert excess(ours[name], want[name], relative) <= bound.tolerance


# mistakes

Mutation = Callable[[pytest.MonkeyPatch], None]


def bilinear_support_mask(patch: pytest.MonkeyPatch) -> None:
    def interpolate(mask: Tensor, size: Any, mode: str) -> Tensor:
        return F.interpolate(mask, size=size, mode="bilinear", align_corners=True)

    patch.setattr(attention, "F", SimpleNamespace(interpolate=interpolate, dropout=F.dropout))


def unrotated_prototypes(patch: pytest.MonkeyPatch) -> None:
    right = model.key_prototypes

    def wrong(*args: Any) -> Tensor:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(attention, "rotate", lambda attn, tokens: tokens)
            return right(*args)

    patch.setattr(model, "key_prototypes", wrong)


def confirmation_refreshed_each_round(patch: pytest.MonkeyPatch) -> None:
    known: list[Tensor] = []

    def remembering(features: Tensor, prototypes: Tensor) -> Tensor:
        known[:] = [prototypes]
        return support_agreement(features, prototypes)

    def wrong(noisy: QueryMemory, clean: QueryMemory, confirmed: Tensor, *, rounds: int,
              version: str) -> Iterator[QueryMemory]:
        for _ in range(rounds):
            (clean,) = model_refine(noisy, clean, support_agreement(clean.features, known[0]), rounds=1,
                                    version=version)
            yield clean

    model_refine = model.refine
    patch.setattr(model, "support_agreement", remembering)
    patch.setattr(model, "refine", wrong)


def soft_mask_thresholded(patch: pytest.MonkeyPatch) -> None:
    right = model.prior_masks

    def wrong(*args: Any) -> Any:
        shots = right(*args)
        return SimpleNamespace(foreground=shots.foreground, background=shots.background, difference=shots.difference,
                               mean=lambda: tuple((m > 0.5).float() for m in shots.mean()))

    patch.setattr(model, "prior_masks", wrong)


def blanking_by_the_object_score(patch: pytest.MonkeyPatch) -> None:
    right = FssamCore.decode

    def wrong(self: FssamCore, *args: Any, **settings: Any) -> DecodedMasks:
        scores: list[Tensor] = []
        handle = self.sam.sam_mask_decoder.register_forward_hook(lambda _m, _a, output: scores.append(output[3]))
        found = right(self, *args, **settings)
        handle.remove()
        return DecodedMasks(logits=torch.where(scores[0][:, :, None, None] > 0, found.logits, -1024.0), ious=found.ious,
                            tokens=found.tokens)

    patch.setattr(FssamCore, "decode", wrong)


MISTAKES = [bilinear_support_mask, unrotated_prototypes, confirmation_refreshed_each_round, soft_mask_thresholded,
            blanking_by_the_object_score]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_fails_on_the_stored_outputs(mistake: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    mistake(monkeypatch)
    assert any(c.mistaken for c in _stored_checks("repaired"))


@needs_golden
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_fails_on_an_official_case(mistake: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    case = json.loads((FOLDER / "cases.json").read_text())["A"]
    want = read_npz(FOLDER / case["file"])
    built = load_model(case, read_npz(FOLDER / case["state"]))
    end = {k: v for k, v in want.items() if k.startswith(("in/", "out/logits", "scma/output"))}
    assert all(c.passed for c in check_case("A", built, want, end))
    mistake(monkeypatch)
    assert any(c.mistaken for c in check_case("A", built, want, end))


def test_a_gate_of_one_copies_the_noisy_memory() -> None:
    """A reading of the refinement that no file is needed for: full agreement replaces, none keeps."""
    noisy, clean = (QueryMemory(features=torch.randn(1, 4, 3, 3), mask=torch.rand(1, 3, 3)) for _ in range(2))
    kept = next(model.refine(noisy, clean, torch.full((1, 3, 3), -1.0), rounds=1, version="v1"))
    assert torch.equal(kept.features, clean.features)
    copied = next(model.refine(noisy, clean, torch.full((1, 3, 3), 1.0), rounds=1, version="v1"))
    gate = agreement(noisy.features, model.pool(clean.features, clean.mask))[:, None]
    torch.testing.assert_close(copied.features, gate * noisy.features + (1 - gate) * clean.features)


def _recording(variant: str) -> dict[str, Tensor]:
    with torch.no_grad():
        return observe(fssam_case.model(variant), clip_of(fssam_case.inputs()), {})


def _stored_checks(variant: str) -> list[GoldenCheck]:
    return list(check_case(variant, fssam_case.model(variant), fssam_case.inputs(), fssam_case.stored(variant)))
