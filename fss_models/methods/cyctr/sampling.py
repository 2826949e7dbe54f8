"""Support cells that CyCTR's cross-attention reads: their flags, and which of them are drawn.

Letters: S support sets, T cells of a set's shots together, N drawn cells, D width, G grid side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fss_models.methods.cyctr.config import CyctrConfig

FACTORS = {True: (0.6, 4.0), False: (0.6, 1.4)}  # one shot or several: range by which training scales the numbers
Permutation = Callable[[int], Tensor]


@dataclass(frozen=True, kw_only=True)
class SupportTokens:
    """Cells of support sets: keys [S, T, D]; flags [S, T] bool: on the object, padded, and whether there is a cell.

    After `draw`, T is N, and the flags object and padded may be those of other cells.
    """

    keys: Tensor
    object: Tensor
    padded: Tensor
    real: Tensor

    def take(self, index: Tensor) -> SupportTokens:
        """The rows of the support sets `index` [M]."""
        return SupportTokens(keys=self.keys[index], object=self.object[index], padded=self.padded[index],
                             real=self.real[index])


def object_cells(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Object cells [E, h, w] bool of masks [E, 1, R, R] by nearest neighbour.

    Without any, the four in the middle count; without any background cell, the corners are left out.
    """
    cells = F.interpolate(masks, size=size, mode="nearest")[:, 0] > 0.5
    h, w = size
    middle, corners = (torch.zeros(size, dtype=torch.bool, device=masks.device) for _ in range(2))
    middle[h // 2 - 1 : h // 2 + 1, w // 2 - 1 : w // 2 + 1] = True
    corners[:: max(h - 1, 1), :: max(w - 1, 1)] = True
    none, full = (~cells).flatten(1).all(dim=1), cells.flatten(1).all(dim=1)
    return torch.where(none[:, None, None], middle, cells & ~(full[:, None, None] & corners))


def draw(
    tokens: SupportTokens, shots: Tensor, config: CyctrConfig, permutation: Permutation, factor: float = 1.0
) -> SupportTokens:
    """Draw cells of every set, of which `shots` [S] is the number of shots; `factor` scales the numbers.

    Sets with fewer cells than others are filled up with cells that are not real.
    """
    if config.sampling == "all":
        return tokens
    wanted = [(int(config.object_tokens * k * factor), int(config.background_tokens * k * factor))
              for k in shots.tolist()]
    drawn = [_indices(tokens.object[s] & tokens.real[s], ~tokens.object[s] & tokens.real[s], numbers, permutation)
             for s, numbers in enumerate(wanted)]
    longest = max(len(cells) for cells, _ in drawn)
    cells, flags = (torch.stack([F.pad(one[side], (0, longest - len(one[side]))) for one in drawn]) for side in (0, 1))
    real = torch.stack([torch.arange(longest) < len(one) for one, _ in drawn]).to(cells.device)
    of = cells if config.sampling_flags == "correct" else flags
    keys = tokens.keys.gather(1, cells[..., None].expand(-1, -1, tokens.keys.shape[2]))
    return SupportTokens(keys=keys, object=tokens.object.gather(1, of), padded=tokens.padded.gather(1, of), real=real)


def _indices(
    is_object: Tensor, is_other: Tensor, numbers: tuple[int, int], permutation: Permutation
) -> tuple[Tensor, Tensor]:
    """Numbers of the drawn cells, and those at which the official code reads their flags, [N] each."""
    objects, others = is_object.nonzero()[:, 0], is_other.nonzero()[:, 0]
    wanted, rest = numbers

    def some(part: Tensor, count: int) -> tuple[Tensor, Tensor]:
        chosen = permutation(len(part)).to(part.device)[:count]
        return part[chosen], chosen

    if len(objects) < wanted:
        parts = [(objects, objects), some(others, wanted + rest - len(objects))]
    elif len(others) < rest:
        parts = [some(objects, wanted + rest - len(others)), (others, others)]
    else:
        parts = [some(objects, wanted), some(others, rest)]
    cells, flags = (torch.cat([p[side] for p in parts]) for side in (0, 1))
    return cells, flags
