"""How sure the labels are: the bundle's calibrator asked about every mask, and what follows for the photo.

empty         the class is probably not there: the label has no mask
review        it may be there, but the mask is doubtful: somebody should look
accepted      neither
uncalibrated  the supports look unlike everything the calibrator was fitted on: no probability is given
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
from pipelines.serving.masks import Presence
from pipelines.serving.wanted import Wanted

MAX_TRIALS = 10  # shots of a large support set that are left out, one at a time


@dataclass(frozen=True, kw_only=True)
class Known:
    """What a calibrator needs of a support set."""

    signature: SupportSignature
    opinion: ShotAgreement | None
    far: bool


class Judge:
    """A model's calibrator at work."""

    def __init__(self, model: Segmenter, calibrator: Calibrator) -> None:
        self.model, self.calibrator = model, calibrator

    def know(self, features: Features, prompts: Sequence[Prompt], memory: Memory) -> Known:
        """Look at a support set once. `features` are of its photos, in order; `memory` holds it alone."""
        masks = self._masks(features, prompts, memory)
        signature = describe_support(features, masks)
        enough = len(prompts) >= MIN_ADJUST and all(p.kind == PromptKind.MASK for p in prompts)
        opinion = self._opinion(features, prompts[:MAX_TRIALS], masks) if enough else None
        return Known(signature=signature, opinion=opinion, far=bool(self.calibrator.far(signature)[0]))

    def ask(self, found: Prediction, features: Features, pairs: Tensor, known: Sequence[Known],
            wanted: Sequence[Wanted]) -> list[Presence]:
        """One answer a pair [P, 2] of (row of `known`, row of `features`); `wanted` are the questions of the first."""
        asked = len(wanted)
        measured = measure(found, features, stack([k.signature for k in known]), pairs)[:asked]
        answers = []
        for row, question in enumerate(wanted):
            own = known[int(pairs[row, 0])]
            if own.far:
                answers.append(Presence(status="uncalibrated"))
                continue
            there, good = self.calibrator.probabilities(measured[row:row + 1], own.opinion,
                                                        question.prevalence)[0].tolist()
            answers.append(Presence(presence=there, quality=good, status=status_of(there, good, question)))
        return answers

    def _masks(self, features: Features, prompts: Sequence[Prompt], memory: Memory) -> Tensor:
        """[K, h, w] where the object is: the mask that was given, else what the support set finds in its own photo."""
        given = [self.model.preprocessor.mask(p.mask.numpy()) if p.mask is not None else None for p in prompts]
        if all(g is not None for g in given):
            return torch.stack([g for g in given if g is not None])
        pairs = torch.stack([torch.zeros(len(prompts), dtype=torch.int64), torch.arange(len(prompts))], dim=1)
        seen = (self.model.segment(memory, features, pairs.to(self.model.device)).logits.float() > 0).float().cpu()
        side = (self.model.side, self.model.side)
        large = torch.nn.functional.interpolate(seen[:, None], size=side, mode="nearest")[:, 0]
        return torch.stack([own if g is None else g for own, g in zip(large, given, strict=True)])

    def _opinion(self, features: Features, prompts: Sequence[Prompt], masks: Tensor) -> ShotAgreement:
        trials = leave_one_out(len(prompts))
        found = segment_trials(self.model, features, prompts, trials)
        signatures = stack([describe_support(features.take(torch.tensor(shots)), masks[list(shots)])
                            for shots, _ in trials])
        pairs = torch.arange(len(prompts))[:, None].expand(-1, 2).to(self.model.device)
        ious = [iou_at(logits, p.mask, corners=self.model.corners_aligned)
                for logits, p in zip(found.logits, prompts, strict=True) if p.mask is not None]
        return opinion_of(self.calibrator, measure(found, features, signatures, pairs), torch.tensor(ious))


def status_of(presence: float, quality: float, wanted: Wanted) -> str:
    """empty, review or accepted."""
    if presence < wanted.empty_below:
        return "empty"
    return "review" if quality < wanted.review_below else "accepted"
