"""HDMNet's distillation (section 3.4): a correlation map learns from the next coarser one, the coarsest from truth."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

LOW = -1e9  # the teacher's score of background
LOG_EPSILON = 1e-12


def distillation(correlation: Sequence[Tensor], label: Tensor) -> list[Tensor]:
    """Divergence of each correlation map [P, 1, h, w], the coarsest first, from its teacher; mean over the pairs.

    The first teacher is 1 on the object of `label` [P, R, R] (1) and very low elsewhere, also where void (255).
    """
    teacher = torch.where(label == 1, 1.0, LOW)[:, None].to(correlation[0])
    found = []
    for student in correlation:
        found.append(divergence(teacher, student))
        teacher = student.detach()
    return found


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL divergence of two maps [P, 1, ., .] as distributions over the student's cells, mean over the pairs."""
    small = F.interpolate(teacher, size=student.shape[-2:], mode="bilinear", align_corners=False)
    p, q = (x.flatten(1).softmax(dim=1) for x in (small, student))
    terms = p * (p + LOG_EPSILON).log() - p * (q + LOG_EPSILON).log()
    return terms.sum(dim=1).mean()
