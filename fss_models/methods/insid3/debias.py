"""Positional debiasing: features of a black image span the directions that tell where a patch lies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PositionalBasis:
    """Singular values [min(C, L)] of a black image's centred unit features, and the projector [C, C] on the first s."""

    singular_values: Tensor
    projector: Tensor


def positional_basis(features: Tensor, components: int) -> PositionalBasis:
    """The basis of one image's features [C, L], with `components` directions; in double precision."""
    unit = F.normalize(features.double(), dim=0)
    centred = unit - unit.mean(dim=1, keepdim=True)
    values, vectors = torch.linalg.eigh(centred @ centred.T)
    kept = vectors[:, len(values) - components :]
    singular = values.clamp(min=0).sqrt().flip(0)[: min(features.shape)]
    return PositionalBasis(singular_values=singular, projector=(kept @ kept.T).to(features))


def debias(unit: Tensor, projector: Tensor) -> Tensor:
    """Unit features [N, C, L] without their part in the basis, of unit length again."""
    return F.normalize(unit - projector @ unit, dim=1)
