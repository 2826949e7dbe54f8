"""How sure the labels are: the bundle's calibrator estimates probabilities for every mask, which give its status.

empty         the class is probably not in the photo: the label has no mask
review        the class may be there, but the mask is doubtful: a person should look at it
accepted      the class is probably there and the mask is probably good
uncalibrated  the supports look unlike everything that the calibrator was fitted on: there is no probability
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fss_models.calibration import (
    MIN_ADJUST,
    Calibrator,
    ShotAgreement,
    SupportSignature,
    describe_support,
    measure,
    stack,
)
from fss_models.calibration_fit import opinion_of
from fss_models.clip import Features, Memory, Prediction, Prompt, PromptKind
from fss_models.leave_one_out import iou_at, leave_one_out, segment_trials
from fss_models.segmenter import Segmenter

MAX_TRIALS = 10  # at most so many supports of a set are left out, one at a time


class Trust(Protocol):
    """When a mask is trusted.

    prevalence    estimated share of the photos that show the class
    empty_below   a class less probable than this gets an empty label
    review_below  a mask less probably good gets the status review
    """

    @property
    def prevalence(self) -> float: ...

    @property
    def empty_below(self) -> float: ...

    @property
    def review_below(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Presence:
    """A calibrator's estimate for one mask.

    presence  probability that the class is in the photo; None without an estimate
    quality   probability that the class is in the photo and the mask is good; None without an estimate
    status    one of the words above; "" where the bundle has no calibrator
    """

    presence: float | None = None
    quality: float | None = None
    status: str = ""


UNCALIBRATED = Presence()


@dataclass(frozen=True, kw_only=True)
class SupportStatistics:
    """What a calibrator needs to know about a support set.

    signature  describes how the supports look
    opinion    adjusts the calibrator to the set, from leave-one-out; None for too few supports, or without masks
    far        whether the supports look unlike everything that the calibrator was fitted on
    """

    signature: SupportSignature
    opinion: ShotAgreement | None
    far: bool


class LabelJudge:
    """Estimates with a model's calibrator whether masks are good and whether their class is there."""

    def __init__(self, model: Segmenter, calibrator: Calibrator) -> None:
        self.model, self.calibrator = model, calibrator

    def describe_supports(self, features: Features, prompts: Sequence[Prompt], memory: Memory,
                          name: str = "") -> SupportStatistics:
        """The statistics of a support set. `features` are those of its photos, in order; `memory` holds this set,
        `name` is its class's.
        """
        masks = self._masks(features, prompts, memory)
        shown = [i for i, p in enumerate(prompts) if not p.negative]  # a negative example shows no object
        signature = _describe(features, masks, shown)
        enough = len(shown) >= MIN_ADJUST and all(prompts[i].kind == PromptKind.MASK for i in shown)
        opinion = self._opinion(features, prompts, masks, shown[:MAX_TRIALS], name) if enough else None
        return SupportStatistics(signature=signature, opinion=opinion, far=bool(self.calibrator.far(signature)[0]))

    def judge_masks(self, prediction: Prediction, features: Features, pairs: Tensor,
                    statistics: Sequence[SupportStatistics], requests: Sequence[Trust]) -> list[Presence]:
        """The estimates for the first `len(requests)` masks of `prediction`, each with its request.

        `pairs` [P, 2] holds for each mask its row of `statistics` and its row of `features`.
        """
        measured = self.measure_masks(prediction, features, pairs, statistics).cpu()
        return self.decide(measured, [statistics[row] for row in pairs[:len(requests), 0].tolist()], requests)

    def measure_masks(self, prediction: Prediction, features: Features, pairs: Tensor,
                      statistics: Sequence[SupportStatistics]) -> Tensor:
        """The numbers [P, F], on the device, from which `decide` makes estimates; arguments as for `judge_masks`."""
        return measure(prediction, features, stack([s.signature for s in statistics]), pairs)

    def decide(self, measured: Tensor, statistics: Sequence[SupportStatistics], requests: Sequence[Trust]
               ) -> list[Presence]:
        """An estimate for each request, from its row of `measured` (on the CPU) and its item of `statistics`."""
        answers = []
        for row, (own, request) in enumerate(zip(statistics, requests, strict=True)):
            if own.far:
                answers.append(Presence(status="uncalibrated"))
                continue
            there, good = self.calibrator.probabilities(measured[row:row + 1], own.opinion,
                                                        request.prevalence)[0].tolist()
            answers.append(Presence(presence=there, quality=good, status=status_of(there, good, request)))
        return answers

    def _masks(self, features: Features, prompts: Sequence[Prompt], memory: Memory) -> Tensor:
        """[K, h, w] where the object is: the mask of the prompt, else what the support set finds in its own photo."""
        given = [self.model.preprocessor.mask(p.mask.numpy()) if p.mask is not None else None for p in prompts]
        if all(g is not None for g in given):
            return torch.stack([g for g in given if g is not None])
        pairs = torch.stack([torch.zeros(len(prompts), dtype=torch.int64), torch.arange(len(prompts))], dim=1)
        seen = (self.model.segment(memory, features, pairs.to(self.model.device)).logits.float() > 0).float().cpu()
        side = (self.model.side, self.model.side)
        large = torch.nn.functional.interpolate(seen[:, None], size=side, mode="nearest")[:, 0]
        return torch.stack([own if g is None else g for own, g in zip(large, given, strict=True)])

    def _opinion(self, features: Features, prompts: Sequence[Prompt], masks: Tensor, shown: list[int],
                 name: str) -> ShotAgreement:
        trials = leave_one_out(shown, [i for i, p in enumerate(prompts) if p.negative])
        found = segment_trials(self.model, features, prompts, trials, name)
        signatures = stack([_describe(features, masks, [i for i in shots if not prompts[i].negative])
                            for shots, _ in trials])
        pairs = torch.tensor([[row, query] for row, query in enumerate(shown)]).to(self.model.device)
        truths = [mask for i in shown if (mask := prompts[i].mask) is not None]
        ious = [iou_at(logits, truth, corners=self.model.corners_aligned)
                for logits, truth in zip(found.logits, truths, strict=True)]
        return opinion_of(self.calibrator, measure(found, features, signatures, pairs).cpu(), torch.tensor(ious))


def _describe(features: Features, masks: Tensor, rows: Sequence[int]) -> SupportSignature:
    """The signature of the photos `rows`, with their masks of `masks` [K, h, w]."""
    return describe_support(features.take(torch.tensor(rows)), masks[list(rows)])


def status_of(presence: float, quality: float, request: Trust) -> str:
    """The status empty, review or accepted that the probabilities give under the bounds of `request`."""
    if presence < request.empty_below:
        return "empty"
    return "review" if quality < request.review_below else "accepted"
