"""What a support set is worth, from its own photos alone: each segmented by the others, and by fewer of them.

Only supports marked by masks can be scored; the others still help to segment. With one support nothing can be said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import stats

from fss_models.clip import Prompt
from fss_models.leave_one_out import Trial, iou_at, leave_one_out, segment_trials
from pipelines.inference.labeler import Labeler
from pipelines.inference.supports import SupportSet

PER_SIZE = 24  # trials of each number of shots that a trend is made of
PER_SHOT = 8  # photos on which a shot's influence is measured
AT_A_TIME = 8  # trials in one batch
CONFIDENCE = 0.95
CLEARLY = 0.01  # of IoU


@dataclass(frozen=True, kw_only=True)
class SupportReport:
    """Of one class. Scores are IoUs as fractions.

    miou, interval  mean leave-one-out IoU and its 95 % interval (Student's t over the supports); None below two scores
    scores          support (from 0) -> its IoU when the others segment it
    influence       support -> how much the IoU of the others falls when it is left out; below 0 it hurts
    trend           shots -> mean IoU with so many
    one_more        what one support more would bring, by a - b / shots fitted to the trend; None below three supports
    """

    class_name: str
    shots: int
    miou: float | None = None
    interval: tuple[float, float] | None = None
    scores: dict[int, float] = field(default_factory=dict)
    influence: dict[int, float] = field(default_factory=dict)
    trend: dict[int, float] = field(default_factory=dict)
    one_more: float | None = None

    @property
    def hurting(self) -> list[int]:
        """Supports without which the others do clearly better, the worst first."""
        return sorted((i for i, v in self.influence.items() if v < -CLEARLY), key=lambda i: self.influence[i])

    @property
    def odd(self) -> list[int]:
        """Supports that the others find less than half as well as one another: is the mask right?"""
        return [i for i, v in self.scores.items() if len(self.scores) > 2 and v < np.median(
            [other for j, other in self.scores.items() if j != i]) / 2]


def check_supports(labeler: Labeler, supports: SupportSet, *, seed: int = 0) -> SupportReport:
    """Look at one class. Raises `FssError` if the method refuses its marks."""
    images, prompts = supports.decoded()
    shots = len(prompts)
    asked = [i for i, p in enumerate(prompts) if p.mask is not None]
    if shots < 2 or not asked:
        return SupportReport(class_name=supports.class_name, shots=shots)
    trials = _trials(shots, asked, np.random.default_rng(seed))
    iou = dict(zip(trials, _ious(labeler, images, prompts, trials), strict=True))
    left_out = {i: iou[trial] for trial in leave_one_out(shots) if (i := trial[1]) in asked}
    values = list(left_out.values())
    trend = {k: float(np.mean(found)) for k in range(1, shots) if (found := [v for t,
                                                                             v in iou.items() if len(t[0]) == k])}
    return SupportReport(
        class_name=supports.class_name, shots=shots, scores=left_out, miou=float(np.mean(values)),
        interval=_interval(values), influence=_influence(iou, shots), trend=trend, one_more=_one_more(trend, shots))


def _trials(shots: int, asked: Sequence[int], rng: np.random.Generator) -> list[Trial]:
    """Leave-one-out, leave-two-out for the influence, and random subsets of every size for the trend."""
    found = [t for t in leave_one_out(shots) if t[1] in asked]
    if shots > 2:
        for out in range(shots):
            queries = [int(q) for q in rng.permutation([q for q in asked if q != out])][:PER_SHOT]
            found += [(tuple(j for j in range(shots) if j not in (q, out)), q) for q in queries]
    for size in range(1, shots - 1):
        for _ in range(PER_SIZE):
            query = int(rng.choice(list(asked)))
            others = [j for j in range(shots) if j != query]
            found.append((tuple(sorted(int(j) for j in rng.choice(others, size, replace=False))), query))
    return list(dict.fromkeys(found))


@torch.inference_mode()
def _ious(labeler: Labeler, images: list[np.ndarray], prompts: list[Prompt], trials: list[Trial]) -> list[float]:
    """Each photo is encoded once; trials of equally many shots go together."""
    model = labeler.model
    parts = [model.encode(model.prepare([i]).to(model.device)) for i in images]
    features = type(parts[0])(maps={k: torch.cat([p.maps[k] for p in parts]) for k in parts[0].maps},
                              sizes=torch.cat([p.sizes for p in parts]))
    found: dict[Trial, float] = {}
    ordered = sorted(trials, key=lambda t: len(t[0]))
    for first in range(0, len(ordered), AT_A_TIME):
        some = ordered[first:first + AT_A_TIME]
        logits = segment_trials(model, features, prompts, some).logits
        for trial, one in zip(some, logits, strict=True):
            truth = prompts[trial[1]].mask
            assert truth is not None
            found[trial] = iou_at(one, truth, corners=model.corners_aligned)
    return [found[t] for t in trials]


def _interval(values: Sequence[float]) -> tuple[float, float] | None:
    if len(values) < 2:
        return None
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
    mean = float(np.mean(values))
    return max(0.0, mean - half), min(1.0, mean + half)


def _influence(iou: dict[Trial, float], shots: int) -> dict[int, float]:
    """Mean over queries of the IoU with all others less that without one of them."""
    gaps: dict[int, list[float]] = {}
    whole = {q: v for (kept, q), v in iou.items() if len(kept) == shots - 1}
    for (kept, query), value in iou.items():
        if len(kept) == shots - 2 and kept:
            (out,) = set(range(shots)) - {*kept, query}
            gaps.setdefault(out, []).append(whole[query] - value)
    return {out: float(np.mean(found)) for out, found in sorted(gaps.items())}


def _one_more(trend: dict[int, float], shots: int) -> float | None:
    """By least squares of a - b / k: from `shots` to one more."""
    if len(trend) < 2:
        return None
    k = np.array(sorted(trend), dtype=float)
    slope = float(np.polyfit(-1 / k, [trend[int(i)] for i in k], 1)[0])
    return slope * (1 / shots - 1 / (shots + 1))
