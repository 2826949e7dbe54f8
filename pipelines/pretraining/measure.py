"""How well a model segments an object from a prompt, and finds it again in other views: mean IoU, held-out photos."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fss_models.pretraining.bank import Scene, draw_group
from fss_models.pretraining.objective import PretrainClips, PretrainPrompt, predict_views
from fss_models.sam2_core.core import Sam2Core

CLIPS = 8


@torch.no_grad()
def held_out_ious(core: Sam2Core, clips: Sequence[PretrainClips]) -> dict[str, float]:
    """Mean IoU by kind of prompt.

    iou_points, iou_box    of the marked view, from one to four points or from a box
    iou_tracked            of the next view, after a mask
    iou_copied             of the next view if the mask is left where it was, as by a model that ignores the photo
    """
    core.eval()
    found: dict[str, list[float]] = {}
    for one in clips:
        marked, tracked = predict_views(core, one.to(next(core.parameters()).device))
        if one.mark == PretrainPrompt.MASK:
            found.setdefault("iou_tracked", []).extend(_ious(tracked, one.masks[:, 1]))
            found.setdefault("iou_copied", []).extend(_ious(one.masks[:, 0] - 0.5, one.masks[:, 1]))
        else:
            found.setdefault(f"iou_{one.mark.name.lower()}", []).extend(_ious(marked, one.masks[:, 0]))
    return {k: float(np.mean(v)) for k, v in sorted(found.items())}


def fixed_clips(scenes: list[Scene], *, seed: int, groups: int) -> list[PretrainClips]:
    """Clips for every measurement of a pretraining, drawn once by `seed`; each kind of mark in turn."""
    rng, kinds = np.random.default_rng([seed, 7]), list(PretrainPrompt)
    chosen = [rng.integers(len(scenes), size=CLIPS).tolist() for _ in range(groups)]
    return [draw_group(scenes, rng, kinds[i % len(kinds)], one) for i, one in enumerate(chosen)]


def _ious(logits: torch.Tensor, truth: torch.Tensor) -> list[float]:
    """IoU of each clip in which the object is visible; masks are compared at the size of the logits."""
    small = torch.nn.functional.interpolate(truth[:, None].cpu(), size=logits.shape[-2:], mode="area")[:, 0] > 0.5
    p = logits.cpu() > 0
    union = (p | small).flatten(1).sum(1).clamp(min=1)
    iou = (p & small).flatten(1).sum(1) / union
    return [float(v) for v, seen in zip(iou, small.flatten(1).any(1), strict=True) if seen]
