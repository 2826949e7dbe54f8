"""The base learner while it is trained: a backbone and PSPNet's head, on whole photos and their base classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fss_models.base_learner.head import PspHead
from fss_models.optimisation import ParameterGroup
from fss_models.prior_guided.blocks import pixel_cross_entropy
from fss_models.prior_guided.maps import resize_aligned
from fss_models.state_dict import check_state

HEAD_FACTOR = 10.0  # times the trunk's learning rate (released code)


@dataclass(frozen=True, kw_only=True)
class LabelledPhotos:
    """N photos with the base class of every pixel.

    pixels  [N, 3, R, R] float, normalised
    labels  [N, R, R] int64: 0 background and classes that are not base, 1 ... n the base classes, 255 void
    """

    pixels: Tensor
    labels: Tensor

    def to(self, device: str) -> LabelledPhotos:
        """A copy on `device`."""
        return LabelledPhotos(pixels=self.pixels.to(device), labels=self.labels.to(device))

    def split(self, parts: int) -> list[LabelledPhotos]:
        """Equal parts, in order. Raises `ValueError` if N is not a multiple of `parts`."""
        if len(self.pixels) % parts:
            raise ValueError(f"{len(self.pixels)} photos cannot be split into {parts} equal parts")
        size = len(self.pixels) // parts
        return [LabelledPhotos(pixels=p, labels=t)
                for p, t in zip(self.pixels.split(size), self.labels.split(size), strict=True)]


class BaseLearner(nn.Module):
    """Logits of the base classes; `frozen` keeps the backbone as it is and trains the head alone.

    `backbone` has `levels(pixels)` -> (layer2, layer3) and `top(layer3)` -> layer4.
    """

    def __init__(self, backbone: Any, head: PspHead, *, frozen: bool = False,
                 head_factor: float = HEAD_FACTOR) -> None:
        super().__init__()
        self.backbone, self.head, self.frozen, self.head_factor = backbone, head, frozen, head_factor
        head.requires_grad_(True)
        backbone.requires_grad_(not frozen)
        backbone.batch_statistics = not frozen

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [N, 1 + n, R, R] of normalised photos [N, 3, R, R]."""
        _, high = self.backbone.levels(pixels)
        return resize_aligned(self.head(self.backbone.top(high)), pixels.shape[-2:])

    def losses(self, batch: LabelledPhotos) -> dict[str, Tensor]:
        """Cross-entropy over the pixels of the batch that are not void."""
        return {"base": pixel_cross_entropy(self(batch.pixels), batch.labels)}

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """The head learns `head_factor` times as fast as the trunk, where both are trained."""
        return () if self.frozen else [ParameterGroup(parameters=list(self.head.parameters()), factor=self.head_factor)]

    def trainable_state(self) -> dict[str, Tensor]:
        """Trained tensors and the statistics of their normalisations, on the CPU: layer0 ... layer4, ppm, cls."""
        return {k: v.detach().cpu().contiguous() for k, v in self._named().items()}

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        """Load a result of `trainable_state`. Raises `FssError` naming the first tensor that does not fit."""
        named = self._named()
        check_state(state, named, subject="base learner")
        for key, value in state.items():
            named[key].copy_(value)

    def _named(self) -> dict[str, Tensor]:
        """The trained tensors themselves, under the names of the official checkpoints."""
        parts = [self.head] if self.frozen else [self.backbone, self.head]
        return {k: v for part in parts for k, v in part.state_dict().items()}
