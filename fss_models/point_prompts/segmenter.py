"""What GF-SAM and Matcher share as methods: frozen parts alone, and masks as the only marks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fss_models.clip import PromptKind
from fss_models.point_prompts.build import PointParts
from fss_models.prototype_prompts.sams import PointDecoder
from fss_models.segmenter import Negatives


class PointPromptedSegmenter(PointDecoder):
    """A method without training around the parts `sam` and `cells`."""

    trains = False
    prompt_kinds = frozenset({PromptKind.MASK})

    def __init__(self, *, preset: str, config: Any, parts: PointParts) -> None:
        super().__init__(preset=preset, preprocessor=parts.preprocessor, config=config)
        self.sam, self.cells = parts.sam, parts.cells
        self._complete, self._frozen = parts.checkpoint and parts.pretrained, parts.frozen
        self.requires_grad_(False)

    @property
    def supports_apart(self) -> bool:
        """Where the cells come from DINOv2: SAM then sees queries alone."""
        return not self.cells.looks

    @classmethod
    def negatives(cls, config: Any) -> Negatives:
        """Marked cells of negative examples belong to the background."""
        return "marks"

    @property
    def untrained(self) -> bool:
        """Whether SAM or the cells' source holds random values."""
        return not self._complete

    @property
    def keeps_random_parts(self) -> bool:
        """As `untrained`: nothing trains."""
        return self.untrained

    def frozen_weights(self) -> dict[str, str]:
        """Pretrained weights of SAM, of SAM 2's trunk, and of DINOv2."""
        return dict(self._frozen)


def with_square(masks: Tensor, side: int) -> Tensor:
    """Masks [S, K, R, R], an empty one replaced by a square of `side` pixels in the middle."""
    square, first = torch.zeros_like(masks[:1, :1]), (masks.shape[-1] - side) // 2
    square[..., first : first + side, first : first + side] = 1
    return torch.where(masks.flatten(2).any(dim=2)[..., None, None], masks, square)
