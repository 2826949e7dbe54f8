"""The class that each pixel of a photo in tiles belongs to, when masks of classes share no pixel.

Which classes the photo shows is known after its last tile only, and a class that it does not show takes no pixel. So
for each strip of the photo the classes that claim a pixel are kept in their order, as run lengths.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fss_models.run_lengths import ColumnRuns, Rle

NO_CLAIM = -math.inf
Runs = tuple[npt.NDArray[np.int16], npt.NDArray[np.int64]]  # classes, -1 for none, and how many pixels each run has


class RankedOwners:
    """Collects the claims of `classes` classes to the pixels of a photo [height, width], strip by strip from the left.
    """

    def __init__(self, height: int, width: int, classes: int) -> None:
        self.height, self.width, self.classes = height, width, classes
        self._strips: list[list[Runs]] = []  # of each strip the runs of the first claims, of the second ones and so on

    def add(self, claims: Iterable[Tensor], *, first_only: bool) -> None:
        """The next columns: each class's weight [height, n] in each pixel, `NO_CLAIM` where it has no pixel.

        The highest weight comes first, of equal ones the first class's. `first_only`: no class will be left out.
        """
        ranks: list[tuple[Tensor, Tensor]] = []
        for number, weight in enumerate(claims):
            owner = torch.where(weight > NO_CLAIM, number, -1).to(torch.int16)
            ahead = torch.zeros_like(owner, dtype=torch.bool)
            for rank, (best, first) in enumerate(ranks):
                ahead |= weight > best  # from here on the claims that were there move back by one
                ranks[rank] = torch.where(ahead, weight, best), torch.where(ahead, owner, first)
                weight, owner = torch.where(ahead, best, weight), torch.where(ahead, first, owner)
            if not ranks or (not first_only and bool((owner >= 0).any())):
                ranks.append((weight, owner))
        self._strips.append([_runs(owner.T.numpy().ravel()) for _, owner in ranks])

    def masks(self, there: Collection[int]) -> list[Rle]:
        """The masks of all classes, after the last column: a pixel belongs to the first of the classes `there`."""
        found = [ColumnRuns(self.height, self.width) for _ in range(self.classes)]
        known = np.array([*(number in there for number in range(self.classes)), False])  # the last one: no class
        for ranks in self._strips:
            owner = np.full(int(ranks[0][1].sum()), -1, dtype=np.int16)
            for classes, lengths in reversed(ranks):
                claimed = np.repeat(classes, lengths)
                owner = np.where(known[claimed], claimed, owner)
            for number, runs in enumerate(found):
                runs.add((owner == number).reshape(-1, self.height).T)
        return [runs.rle() for runs in found]


def _runs(owner: npt.NDArray[np.int16]) -> Runs:
    starts = np.concatenate([[0], np.flatnonzero(np.diff(owner)) + 1])
    return owner[starts], np.diff(starts, append=owner.size)
