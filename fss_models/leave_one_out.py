"""Leave-one-out tests within a support set: each photo is segmented by some of the others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fss_models.clip import Features, Prediction, Prompt
from fss_models.segmenter import Segmenter

Trial = tuple[tuple[int, ...], int]  # the shots that are the support, the shot that is the query


def leave_one_out(shots: Sequence[int], always: Sequence[int] = ()) -> list[Trial]:
    """Trials in which each of `shots` is segmented by all the others, and by those that are `always` there."""
    return [(tuple(sorted([*(j for j in shots if j != i), *always])), i) for i in shots]


@torch.inference_mode()
def segment_trials(model: Segmenter, features: Features, prompts: Sequence[Prompt], trials: Sequence[Trial],
                   name: str = "") -> Prediction:
    """Predict all trials in one batch. `features` are those of the K photos that `prompts` mark; `name`: their class's.
    """
    width = max(len(shots) for shots, _ in trials)
    where = torch.tensor([[*shots, *[0] * (width - len(shots))] for shots, _ in trials])
    sets = [[prompts[j] for j in shots] for shots, _ in trials]
    memory = model.memorise(features, model.collate(sets, features.sizes.cpu(), where, [name] * len(sets)).to(
        model.device))
    pairs = torch.tensor([[row, query] for row, (_, query) in enumerate(trials)])
    return model.segment(memory, features, pairs.to(model.device))


def iou_at(logits: Tensor, truth: Tensor, *, corners: bool, ignore: Tensor | None = None) -> float:
    """IoU of truth [H, W] bool and logits [h, w], which are resized to the truth's size; 1 if both are empty.

    `ignore` [H, W] bool marks pixels that do not count. `corners` is the method's `corners_aligned`.
    """
    large = F.interpolate(logits[None, None].float(), size=truth.shape, mode="bilinear", align_corners=corners)[0, 0]
    found, truth = (large > 0).cpu(), truth.cpu()
    if ignore is not None:
        found, truth = found & ~ignore, truth & ~ignore
    union = int((found | truth).sum())
    return int((found & truth).sum()) / union if union else 1.0
