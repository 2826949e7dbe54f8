"""Metrics against hand-computed numbers and against the official implementation's golden tensors."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from fss_models.errors import FssError
from fss_models.metrics import (
    Counts,
    MethodCounts,
    episode_counts,
    interval,
    paired_difference,
    resampled_scores,
    score,
)

SHARED = Path(os.environ.get("FSS_SHARED", Path(__file__).resolve().parents[2].parent / "shared"))


def counts(rows: list[tuple[int, int, int, int, int]]) -> Counts:
    table = np.array(rows, dtype=np.int64)
    return Counts(class_ids=table[:, 0], inter=table[:, 1:3], union=table[:, 3:5])


def test_episode_counts_by_hand() -> None:
    pred = torch.tensor([[1, 1, 0], [0, 0, 0]]).bool()
    truth = torch.tensor([[1, 0, 1], [0, 0, 0]]).bool()
    assert episode_counts(pred, truth) == ([3, 1], [5, 3])


def test_ignored_pixels_enter_neither() -> None:
    pred = torch.tensor([[1, 1, 0], [0, 0, 0]]).bool()
    truth = torch.tensor([[1, 0, 1], [0, 0, 0]]).bool()
    ignore = torch.tensor([[0, 1, 0], [0, 0, 1]]).bool()
    assert episode_counts(pred, truth, ignore) == ([2, 1], [3, 2])


def test_sizes_must_agree() -> None:
    with pytest.raises(FssError, match="prediction is"):
        episode_counts(torch.zeros(2, 2).bool(), torch.zeros(2, 3).bool())


def test_scores_accumulate_per_class() -> None:
    """An implementation that averages per-episode IoU gives 0.5 for class 7, not 11/110."""
    table = counts([(7, 0, 1, 10, 10), (7, 90, 10, 100, 100), (8, 50, 30, 60, 40), (9, 1, 1, 1, 1)])
    got = score(table, [7, 8, 5])
    assert got.per_class == {7: pytest.approx(11 / 110), 8: pytest.approx(0.75), 5: 0.0}
    assert got.miou == pytest.approx((0.1 + 0.75) / 3)
    assert got.fb_iou == pytest.approx((140 / 170 + 41 / 150) / 2)


def test_golden_unit_metrics() -> None:
    path = SHARED / "golden" / "sansa" / "unit_metrics.safetensors"
    if not path.is_file():
        pytest.skip("golden tensors are not here")
    from safetensors.torch import load_file

    want = load_file(path)
    pairs = [episode_counts(p.bool(), t.bool()) for p, t in zip(want["pred"], want["gt"], strict=True)]
    inter, union = (np.array(x, dtype=np.int64) for x in zip(*pairs, strict=True))
    assert np.array_equal(inter, want["area_inter"][..., 0].numpy())
    assert np.array_equal(union, want["area_union"][..., 0].numpy())
    classes = want["class_ids_of_interest"].tolist()
    got = score(Counts(class_ids=want["class_id"].numpy(), inter=inter, union=union), classes)
    assert [got.per_class[c] for c in classes] == pytest.approx(want["per_class_iou"].tolist(), rel=1e-6)
    assert got.miou * 100 == pytest.approx(float(want["miou"]), rel=1e-6)
    assert got.fb_iou * 100 == pytest.approx(float(want["fb_iou"]), rel=1e-6)


def _sample(quality: float, *, seeds: int = 1, episodes: int = 40, noise: int = 0) -> MethodCounts:
    rng = np.random.default_rng(5)
    difficulty = rng.uniform(0.6, 1.0, (2, 3, episodes // 2))
    folds = []
    for f in range(2):
        per_seed = []
        for s in range(seeds):
            jitter = np.random.default_rng([noise, s]).normal(0, 0.01, (3, episodes // 2))
            iou = np.clip(difficulty[f] * quality + jitter, 0, 1).ravel()
            classes = np.repeat(np.arange(3) + 3 * f, episodes // 2)
            inter = np.stack([np.full(len(iou), 900), (iou * 1000).astype(int)], axis=1)
            union = np.full_like(inter, 1000)
            per_seed.append(Counts(class_ids=classes, inter=inter, union=union))
        folds.append((f, per_seed))
    return MethodCounts.of(folds)


def test_interval_holds_the_score_and_narrows_with_confidence() -> None:
    sample = _sample(0.6)
    scores = resampled_scores(sample, resamples=400, seed=1)
    mean = sample.inter[0, :, 1].sum() / sample.union[0, :, 1].sum()
    low, high = interval(scores)
    assert low < mean < high
    narrow = interval(scores, 0.5)
    assert low < narrow[0] < narrow[1] < high


def test_paired_difference_sees_what_two_intervals_hide() -> None:
    """The two intervals overlap widely, yet one method is better on every single episode."""
    a, b = _sample(0.62), _sample(0.60)
    ia, ib = (interval(resampled_scores(s, resamples=400, seed=1)) for s in (a, b))
    assert ia[0] < ib[1]
    low, high = paired_difference(a, b, resamples=400, seed=1)
    assert 0 < low < high
    assert paired_difference(a, a, resamples=50, seed=1) == (0.0, 0.0)


def test_equal_methods_with_noise_do_not_differ() -> None:
    low, high = paired_difference(_sample(0.6, noise=1), _sample(0.6, noise=2), resamples=400, seed=3)
    assert low < 0 < high


def test_one_seed_pairs_with_several() -> None:
    low, high = paired_difference(_sample(0.8, seeds=3), _sample(0.6), resamples=200, seed=3)
    assert 0 < low < high


def test_fb_iou_can_be_resampled() -> None:
    scores = resampled_scores(_sample(0.6), resamples=200, seed=1, metric="fb_iou")
    low, high = interval(scores)
    assert 0.6 < low < high < 0.75


def test_different_lists_are_refused() -> None:
    with pytest.raises(FssError, match="different episode lists"):
        paired_difference(_sample(0.6), _sample(0.6, episodes=20), resamples=10, seed=0)
