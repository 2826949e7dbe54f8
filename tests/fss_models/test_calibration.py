"""The calibrator: its numbers on tensors whose answer is known, its fit, its file."""

from __future__ import annotations

import pytest
import torch

from fss_models.calibration import (
    NAMES,
    Calibrator,
    ShotAgreement,
    describe_support,
    load_calibrator,
    look,
    measure,
    stack,
)
from fss_models.calibration_fit import (
    Observation,
    auroc,
    estimate_prevalence,
    expected_error,
    fit_calibrator,
    logistic,
    reliability,
)
from fss_models.clip import Features, Prediction
from fss_models.errors import FssError

F = len(NAMES)


def observed(sets: int, seed: int, *, shots: bool = True) -> list[Observation]:
    """Sets of easy and hard classes: the first number tells presence, less well where the class is hard."""
    rng = torch.Generator().manual_seed(seed)
    found = []
    for number in range(sets):
        ease = float(torch.randn(1, generator=rng))
        present = torch.arange(8) < 4
        measured = torch.randn(8, F, generator=rng)
        measured[:, 0] += torch.where(present, 2.0 + ease, 0.0 + ease)  # a hard class has lower scores all over
        iou = torch.where(present, (0.5 + 0.2 * ease + 0.1 * torch.randn(8, generator=rng)).clamp(0, 1), 0.0)
        own = torch.randn(5, F, generator=rng)
        own[:, 0] += 2.0 + ease
        left = (own, (0.5 + 0.2 * ease + 0.1 * torch.randn(5, generator=rng)).clamp(0, 1)) if shots else None
        found.append(Observation(class_id=number % 10, measured=measured, present=present, iou=iou, left_out=left))
    return found


def scenes(seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(60, 16, generator=torch.Generator().manual_seed(seed)) + 3, dim=1)


def test_auroc_and_calibration_error_on_small_cases() -> None:
    truth = torch.tensor([True, True, False, False])
    assert auroc(torch.tensor([0.9, 0.4, 0.5, 0.1]), truth) == 0.75
    assert auroc(torch.tensor([0.5, 0.5, 0.5, 0.5]), truth) == 0.5
    assert auroc(torch.tensor([0.1]), torch.tensor([True])) != auroc(torch.tensor([0.1]), torch.tensor([True]))  # NaN
    assert expected_error(torch.tensor([1.0, 1.0, 0.0, 0.0]), truth) == 0
    assert expected_error(torch.tensor([0.8, 0.8, 0.8, 0.8]), truth) == pytest.approx(0.3)
    assert reliability(torch.tensor([0.05, 0.95, 1.0]), truth[1:]) == [
        (pytest.approx(0.05), 1.0, 1), (pytest.approx(0.975), 0.0, 2)]


def test_logistic_regression_finds_the_weights() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.cat([torch.randn(20_000, 2, generator=rng), torch.ones(20_000, 1)], dim=1)
    truth = torch.rand(20_000, generator=rng) < (x @ torch.tensor([1.5, -0.5, 0.3])).sigmoid()
    assert torch.allclose(logistic(x, truth, torch.ones(len(x))), torch.tensor([1.5, -0.5, 0.3]), atol=0.2)
    separable = torch.tensor([[-1.0, 1.0], [1.0, 1.0]])
    assert logistic(separable, torch.tensor([False, True]), torch.ones(2)).isfinite().all()


def test_the_fit_is_calibrated_on_others() -> None:
    made = fit_calibrator(observed(200, 0, shots=False), scenes(), {})
    fresh = observed(200, 1, shots=False)
    told = torch.cat([made.probabilities(s.measured) for s in fresh])
    present, good = torch.cat([s.present for s in fresh]), torch.cat([s.present & (s.iou >= 0.5) for s in fresh])
    assert auroc(told[:, 0], present) > 0.8
    assert expected_error(told[:, 0], present) < 0.05
    assert expected_error(told[:, 1], good) < 0.05
    assert (told[:, 1] <= told[:, 0]).all()
    rare = torch.cat([made.probabilities(s.measured, None, 0.05) for s in fresh])
    assert (rare[:, 0] < told[:, 0]).all()
    weights = torch.where(present, 0.05, 0.95)
    assert float((rare[:, 0] * weights).sum() / weights.sum()) == pytest.approx(0.05, abs=0.01)


def test_what_shots_say_of_one_another_shifts_it() -> None:
    """A class whose shots already score low is not judged by what other classes score."""
    made = fit_calibrator(observed(300, 0), scenes(), {})
    fresh = observed(300, 1)
    present = torch.cat([s.present for s in fresh])
    plain = torch.cat([made.probabilities(s.measured) for s in fresh])
    told = []
    for s in fresh:
        assert s.left_out is not None
        there, good = made.logits(s.left_out[0]).mean(dim=0).tolist()
        opinion = ShotAgreement(presence=there, quality=good, iou=float(s.left_out[1].mean()))
        told.append(made.probabilities(s.measured, opinion))
    shifted = torch.cat(told)
    assert auroc(shifted[:, 0], present) > auroc(plain[:, 0], present) + 0.03
    assert expected_error(shifted[:, 0], present) < 0.06
    assert not fit_calibrator(observed(19, 0), scenes(), {}).shift.any()


def test_file_and_versions() -> None:
    made = fit_calibrator(observed(40, 0), scenes(), {"dataset": "drawn"})
    again = load_calibrator(made.save())
    assert again.about == {"dataset": "drawn"}
    assert all(torch.equal(getattr(again, k), v) for k, v in made.__dict__.items() if isinstance(v, torch.Tensor))
    assert made.save() == again.save()
    with pytest.raises(FssError, match="another version"):
        load_calibrator(made.save().replace(rb'\"version\": 1', rb'\"version\": 9'), "x")


def test_prevalence_is_estimated_from_photos_alone() -> None:
    made = fit_calibrator(observed(200, 0, shots=False), scenes(), {})
    fresh = observed(400, 2, shots=False)
    logits, present = (torch.cat([f(s) for s in fresh]) for f in (
        lambda s: made.logits(s.measured)[:, 0], lambda s: s.present))
    for share in (0.1, 0.5, 0.8):
        weights = torch.where(present, share, 1 - share)
        drawn = torch.multinomial(weights, 3000, replacement=True, generator=torch.Generator().manual_seed(0))
        assert estimate_prevalence(logits[drawn]) == pytest.approx(share, abs=0.08)


def test_fitting_needs_both_kinds_of_photos() -> None:
    with pytest.raises(FssError, match="with and without"):
        fit_calibrator([Observation(class_id=0, measured=torch.randn(4, F), present=torch.ones(4, dtype=torch.bool),
                                    iou=torch.ones(4))], scenes(), {})


def test_far_scenes_are_told() -> None:
    made: Calibrator = fit_calibrator(observed(40, 0), scenes(), {})
    features = Features(maps={"m": scenes(5)[:, :, None, None].expand(-1, -1, 4, 4)}, sizes=torch.zeros(60, 2))
    one = describe_support(features.take(torch.tensor([3, 4])), torch.ones(2, 4, 4))
    other = Features(maps={"m": -features.maps["m"]}, sizes=features.sizes)
    assert made.far(stack([one, describe_support(other.take(torch.tensor([3])), torch.ones(1, 4, 4))])).tolist() == [
        False, True]


def test_measures_of_a_known_picture() -> None:
    """Two directions: object and background. The similarity is 1 where the mask is right, -1 where it is wrong."""
    maps = torch.zeros(2, 2, 8, 8)
    maps[:, 0, :, :4], maps[:, 0, :, 4:] = 1.0, -1.0
    features = Features(maps={"fine": torch.zeros(2, 1, 16, 16), "coarse": maps}, sizes=torch.zeros(2, 2))
    assert look(features).shape == maps.shape
    mask = torch.zeros(1, 32, 32)
    mask[:, :, :16] = 1
    own = describe_support(features.take(torch.tensor([0])), mask)
    two = stack([own, describe_support(features, mask.expand(2, -1, -1))])
    right = (mask[0] * 2 - 1) * 9
    found = Prediction(logits=torch.stack([right, -right, right]), scores=torch.tensor([0.9, 0.8, 0.7]))
    rows = measure(found, features, two, torch.tensor([[0, 1], [0, 1], [1, 1]]))
    named = [dict(zip(NAMES, row.tolist(), strict=True)) for row in rows]
    assert [n["similarity"] for n in named] == pytest.approx([1, -1, 1], abs=0.01)
    assert [n["predicted_iou"] for n in named] == pytest.approx([0.9, 0.8, 0.7])
    assert [n["stability"] for n in named] == [1, 1, 1]
    assert named[0]["best_match"] == named[1]["best_match"] == pytest.approx(2)
    assert named[2]["shot_spread"] == pytest.approx(0, abs=1e-4)
    assert torch.allclose(rows[0, 6:], rows[2, 6:], atol=1e-4)  # a padded shot counts nothing
    empty = Prediction(logits=torch.full((1, 32, 32), -9.0), scores=torch.zeros(1))
    assert measure(empty, features, own, torch.tensor([[0, 0]])).isfinite().all()
