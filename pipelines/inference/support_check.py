"""How good a support set is, measured on its own photos: each is segmented by the others, and by fewer of them.

Only supports that are marked by masks can be scored; the others still help to segment. A single support has no score.
Negative supports are part of every trial; trials without them tell what they are worth.
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
class NegativeWorth:
    """What the negative supports of a set change, as fractions.

    count     number of negative supports
    without   mean leave-one-out IoU of the other supports without them
    gain      by how much it rises with them; interval: its 95 % interval, None below two scores
    found     mean share of what a negative support marks that is taken for the object by all other supports;
              found_without: by those that show the object alone. None below two negatives that are masks
    """

    count: int
    without: float
    gain: float
    interval: tuple[float, float] | None = None
    found: float | None = None
    found_without: float | None = None

    @property
    def verdict(self) -> str:
        """Whether they help, hurt, or change nothing that can be told from so few photos."""
        if abs(self.gain) < CLEAR_GAIN or (self.interval and self.interval[0] <= 0 <= self.interval[1]):
            return "make no clear difference"
        return "help" if self.gain > 0 else "hurt"


@dataclass(frozen=True, kw_only=True)
class SupportReport:
    """The measured quality of one class's support set. Scores are IoUs as fractions.

    miou, interval  mean leave-one-out IoU and its 95 % interval (Student's t over the supports); None below two scores
    scores          number of a support (from 0) -> its IoU when the others segment it
    influence       number of a support -> how much the IoU of the others falls without it; a negative value hurts
    trend           number of shots -> mean IoU with that many supports
    one_more        gain in IoU expected of one more support, by a - b / shots fitted to the trend; None below three
                    supports
    negatives       what the negative supports are worth; None without any, or without scores

    `shots` counts supports that show the object.
    """

    class_name: str
    shots: int
    miou: float | None = None
    interval: tuple[float, float] | None = None
    scores: dict[int, float] = field(default_factory=dict)
    influence: dict[int, float] = field(default_factory=dict)
    trend: dict[int, float] = field(default_factory=dict)
    one_more: float | None = None
    negatives: NegativeWorth | None = None

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
    shown = [i for i, p in enumerate(prompts) if not p.negative]
    negative = [i for i, p in enumerate(prompts) if p.negative]
    shots, scored = len(shown), [i for i in shown if prompts[i].mask is not None]
    if shots < 2 or not scored:
        return SupportReport(class_name=supports.class_name, shots=shots)
    trials = _trials(shown, scored, np.random.default_rng(seed))
    plain = [t for t in leave_one_out(shown) if t[1] in scored] if negative else []
    rejected = _negative_trials(shown, [i for i in negative if prompts[i].mask is not None])
    asked = [(_with(t[0], negative), t[1]) for t in trials]
    found = _scores(labeler, images, prompts, [*asked, *plain, *(t for pair in rejected for t in pair)],
                    supports.phrase)
    iou = {trial: found[full] for trial, full in zip(trials, asked, strict=True)}
    left_out = {trial[1]: iou[trial] for trial in leave_one_out(shown) if trial[1] in scored}
    values = list(left_out.values())
    trend = {k: float(np.mean(same)) for k in range(1, shots)
             if (same := [v for t, v in iou.items() if len(t[0]) == k])}
    return SupportReport(
        class_name=supports.class_name, shots=shots, scores=left_out, miou=float(np.mean(values)),
        interval=_interval(values), influence=_influence(iou, shown), trend=trend, one_more=_one_more(trend, shots),
        negatives=_worth(len(negative), left_out, {t[1]: found[t] for t in plain},
                         [(found[a], found[b]) for a, b in rejected]) if negative else None)


def _with(shots: Sequence[int], negative: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted([*shots, *negative]))


def _negative_trials(shown: Sequence[int], negative: Sequence[int]) -> list[tuple[Trial, Trial]]:
    """For each negative support that the others may have seen the like of: segmented with and without those."""
    if len(negative) < 2:
        return []
    return [(trial, (tuple(shown), trial[1])) for trial in leave_one_out(negative, shown)]


def _worth(count: int, scores: dict[int, float], without: dict[int, float],
           rejected: Sequence[tuple[float, float]]) -> NegativeWorth:
    gains = [scores[i] - without[i] for i in scores]
    half = _half_width(gains) if len(gains) > 1 else None
    mean = float(np.mean(gains))
    return NegativeWorth(
        count=count, without=float(np.mean(list(without.values()))), gain=mean,
        interval=None if half is None else (mean - half, mean + half),
        found=float(np.mean([a for a, _ in rejected])) if rejected else None,
        found_without=float(np.mean([b for _, b in rejected])) if rejected else None)


def _trials(shown: Sequence[int], scored: Sequence[int], rng: np.random.Generator) -> list[Trial]:
    """The trials: leave-one-out, leave-two-out for the influence, and random subsets of every size for the trend."""
    found = [t for t in leave_one_out(shown) if t[1] in scored]
    if len(shown) > 2:
        for out in shown:
            queries = [int(q) for q in rng.permutation([q for q in scored if q != out])][:PER_SHOT]
            found += [(tuple(j for j in shown if j not in (q, out)), q) for q in queries]
    for size in range(1, len(shown) - 1):
        for _ in range(PER_SIZE):
            query = int(rng.choice(list(scored)))
            others = [j for j in shown if j != query]
            found.append((tuple(sorted(int(j) for j in rng.choice(others, size, replace=False))), query))
    return list(dict.fromkeys(found))


@torch.inference_mode()
def _scores(labeler: Labeler, images: list[np.ndarray], prompts: list[Prompt], trials: Sequence[Trial],
            name: str) -> dict[Trial, float]:
    """The IoU of every trial; of a negative support the share of its mark that is taken for the object.

    Each photo is encoded once; trials with equally many shots share a batch.
    """
    model = labeler.model
    parts = [model.encode(model.prepare([i]).to(model.device)) for i in images]
    features = type(parts[0]).stack(parts)
    found: dict[Trial, float] = {}
    ordered = sorted(dict.fromkeys(trials), key=lambda t: len(t[0]))
    for first in range(0, len(ordered), BATCH):
        some = ordered[first:first + BATCH]
        logits = segment_trials(model, features, prompts, some, name).logits
        for trial, one in zip(some, logits, strict=True):
            truth = prompts[trial[1]].mask
            assert truth is not None
            ignore = ~truth if prompts[trial[1]].negative else None  # then the IoU is that share
            found[trial] = iou_at(one, truth, corners=model.corners_aligned, ignore=ignore)
    return found


def _interval(values: Sequence[float]) -> tuple[float, float] | None:
    if len(values) < 2:
        return None
    half, mean = _half_width(values), float(np.mean(values))
    return max(0.0, mean - half), min(1.0, mean + half)


def _half_width(values: Sequence[float]) -> float:
    """Half of the interval's width, by Student's t."""
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)


def _influence(iou: dict[Trial, float], shown: Sequence[int]) -> dict[int, float]:
    """Support -> mean over queries of the IoU with all other supports minus the IoU without this one as well."""
    gaps: dict[int, list[float]] = {}
    whole = {q: v for (kept, q), v in iou.items() if len(kept) == len(shown) - 1}
    for (kept, query), value in iou.items():
        if len(kept) == len(shown) - 2 and kept:
            (out,) = set(shown) - {*kept, query}
            gaps.setdefault(out, []).append(whole[query] - value)
    return {out: float(np.mean(found)) for out, found in sorted(gaps.items())}


def _one_more(trend: dict[int, float], shots: int) -> float | None:
    """The gain in IoU from `shots` to `shots` + 1, by a least-squares fit of a - b / k to the trend."""
    if len(trend) < 2:
        return None
    k = np.array(sorted(trend), dtype=float)
    slope = float(np.polyfit(-1 / k, [trend[int(i)] for i in k], 1)[0])
    return slope * (1 / shots - 1 / (shots + 1))
