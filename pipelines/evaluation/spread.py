"""How much a method's score varies over the seeds of its training and over draws of the test episodes."""

from __future__ import annotations

import numpy as np

from fss_models.metrics import Counts, Ints, MethodCounts, Metric, score


def seed_scores(sample: MethodCounts, metric: Metric = "miou") -> list[float]:
    """Score of each seed: the mean over folds, a fraction."""
    return [_mean_of_folds(sample, s, None, metric) for s in range(len(sample.inter))]


def draw_scores(sample: MethodCounts, episodes: int, draws: int, metric: Metric = "miou") -> list[float]:
    """Score of each draw of `episodes` episodes a fold: the mean over folds and seeds, a fraction.

    A class without episodes in a draw is left out of that draw's mean.
    """
    return [float(np.mean([_mean_of_folds(sample, s, slice(d * episodes, (d + 1) * episodes), metric)
                           for s in range(len(sample.inter))])) for d in range(draws)]


def _mean_of_folds(sample: MethodCounts, seed: int, part: slice | None, metric: Metric) -> float:
    found = []
    for fold in np.unique(sample.folds):
        rows: Ints = np.flatnonzero(sample.folds == fold)
        rows = rows if part is None else rows[part]
        classes = sorted(set(sample.class_ids[rows].tolist()))
        counts = Counts(class_ids=sample.class_ids[rows], inter=sample.inter[seed, rows],
                        union=sample.union[seed, rows])
        found.append(float(getattr(score(counts, classes), metric)))
    return float(np.mean(found))
