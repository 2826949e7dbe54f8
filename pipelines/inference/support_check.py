"""How good a support set is, measured on its own photos: each is segmented by the others, and by fewer of them.

Only supports that are marked by masks can be scored; the others still help to segment. A single support has no score.
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

PER_SIZE = 24  # trials for each number of shots of the trend
PER_SHOT = 8  # photos on which a shot's influence is measured
BATCH = 8  # trials in one call of the model
CONFIDENCE = 0.95
CLEAR_GAIN = 0.01  # IoU: a support hurts if the others are better by more than this without it


@dataclass(frozen=True, kw_only=True)
class SupportReport:
    """The measured quality of one class's support set. Scores are IoUs as fractions.

    miou, interval  mean leave-one-out IoU and its 95 % interval (Student's t over the supports); None below two scores
    scores          number of a support (from 0) -> its IoU when the others segment it
    influence       number of a support -> how much the IoU of the others falls without it; a negative value hurts
    trend           number of shots -> mean IoU with that many supports
    one_more        gain in IoU expected of one more support, by a - b / shots fitted to the trend; None below three
                    supports
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
        """The numbers of the supports without which the others reach a clearly higher IoU, the worst first."""
        return sorted((i for i, v in self.influence.items() if v < -CLEAR_GAIN), key=lambda i: self.influence[i])

    @property
    def odd(self) -> list[int]:
        """The numbers of the supports whose IoU is below half the median of the others: their masks may be wrong."""
        return [i for i, v in self.scores.items() if len(self.scores) > 2 and v < np.median(
            [other for j, other in self.scores.items() if j != i]) / 2]


def check_supports(labeler: Labeler, supports: SupportSet, *, seed: int = 0) -> SupportReport:
    """Measure the quality of one class's support set. Raises `FssError` if the method refuses its marks."""
    images, prompts = supports.decoded()
    shots = len(prompts)
    scored = [i for i, p in enumerate(prompts) if p.mask is not None]
    if shots < 2 or not scored:
        return SupportReport(class_name=supports.class_name, shots=shots)
    trials = _trials(shots, scored, np.random.default_rng(seed))
    iou = dict(zip(trials, _ious(labeler, images, prompts, trials, supports.phrase), strict=True))
    left_out = {i: iou[trial] for trial in leave_one_out(shots) if (i := trial[1]) in scored}
    values = list(left_out.values())
    trend = {k: float(np.mean(found)) for k in range(1, shots)
             if (found := [v for t, v in iou.items() if len(t[0]) == k])}
    return SupportReport(
        class_name=supports.class_name, shots=shots, scores=left_out, miou=float(np.mean(values)),
        interval=_interval(values), influence=_influence(iou, shots), trend=trend, one_more=_one_more(trend, shots))


def _trials(shots: int, scored: Sequence[int], rng: np.random.Generator) -> list[Trial]:
    """The trials: leave-one-out, leave-two-out for the influence, and random subsets of every size for the trend."""
    found = [t for t in leave_one_out(shots) if t[1] in scored]
    if shots > 2:
        for out in range(shots):
            queries = [int(q) for q in rng.permutation([q for q in scored if q != out])][:PER_SHOT]
            found += [(tuple(j for j in range(shots) if j not in (q, out)), q) for q in queries]
    for size in range(1, shots - 1):
        for _ in range(PER_SIZE):
            query = int(rng.choice(list(scored)))
            others = [j for j in range(shots) if j != query]
            found.append((tuple(sorted(int(j) for j in rng.choice(others, size, replace=False))), query))
    return list(dict.fromkeys(found))


@torch.inference_mode()
def _ious(labeler: Labeler, images: list[np.ndarray], prompts: list[Prompt], trials: list[Trial],
          name: str) -> list[float]:
    """The IoU of every trial, in order. Each photo is encoded once; trials with equally many shots share a batch."""
    model = labeler.model
    parts = [model.encode(model.prepare([i]).to(model.device)) for i in images]
    features = type(parts[0]).stack(parts)
    found: dict[Trial, float] = {}
    ordered = sorted(trials, key=lambda t: len(t[0]))
    for first in range(0, len(ordered), BATCH):
        some = ordered[first:first + BATCH]
        logits = segment_trials(model, features, prompts, some, name).logits
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
    """Support -> mean over queries of the IoU with all other supports minus the IoU without this one as well."""
    gaps: dict[int, list[float]] = {}
    whole = {q: v for (kept, q), v in iou.items() if len(kept) == shots - 1}
    for (kept, query), value in iou.items():
        if len(kept) == shots - 2 and kept:
            (out,) = set(range(shots)) - {*kept, query}
            gaps.setdefault(out, []).append(whole[query] - value)
    return {out: float(np.mean(found)) for out, found in sorted(gaps.items())}


def _one_more(trend: dict[int, float], shots: int) -> float | None:
    """The gain in IoU from `shots` to `shots` + 1, by a least-squares fit of a - b / k to the trend."""
    if len(trend) < 2:
        return None
    k = np.array(sorted(trend), dtype=float)
    slope = float(np.polyfit(-1 / k, [trend[int(i)] for i in k], 1)[0])
    return slope * (1 / shots - 1 / (shots + 1))
