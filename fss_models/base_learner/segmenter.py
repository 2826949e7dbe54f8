"""The part of BAM and HDMNet that is not theirs alone: the base learner under them, and joining two predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from fss_models.base_learner.build import head_width, trains_trunk
from fss_models.base_learner.ensemble import (
    Ensemble,
    JoinedPrediction,
    ShotWeights,
    equal_weights,
    gram,
    scene_difference,
)
from fss_models.base_learner.head import PspHead
from fss_models.clip import Clip, Features, Images, Memory
from fss_models.errors import FssError
from fss_models.presets import RANDOM
from fss_models.prior_guided.maps import resize_aligned
from fss_models.prior_guided.segmenter import TrunkSegmenter
from fss_models.prior_guided.trunks import TRUNKS, Trunk, build_trunk
from fss_models.state_dict import check_state

CLASSES = 15  # base classes of a PASCAL-5i fold, until a base learner is loaded


@dataclass(frozen=True, kw_only=True)
class ShotMix:
    """How the shots of P pairs are joined: psi [P, K] (each one's difference), weights [P, K], mixed psi [P]."""

    psi: Tensor
    weights: Tensor
    mixed: Tensor


class BaseLearnerSegmenter(TrunkSegmenter):
    """Base of both methods. `decoder` has `ensemble` and, for K > 1, `shot_weights`."""

    presets: ClassVar[tuple[str, ...]] = TRUNKS
    on_base_learner: ClassVar[bool] = True

    def __init__(
        self, *, preset: str, config: Any, weights: str | None, trunk: Trunk | None, head: PspHead | None
    ) -> None:
        """`trunk` and `head` are a trunk and a base learner's head of any size; without them the preset's are built.

        Raises `FssError` for a file of `weights`, and for less than one shot.
        """
        if weights not in (None, "", RANDOM):
            raise FssError(f"method {self.method!r} takes no weights",
                           hint="set base_learner.weights, the file that the base learner starts from")
        if config.shots < 1:
            raise FssError(f"shots is {config.shots}", hint="give at least 1")
        trunk = trunk or build_trunk(preset, None, side=config.side)
        super().__init__(preset=preset, config=config, trunk=trunk)
        self.base_head = head or PspHead(trunk.backbone.channels[2], CLASSES, width=head_width(preset))
        self.base_classes: dict[str, int] = {}  # class name -> its number among the base classes, from 0
        self._learnt = False

    @property
    def untrained(self) -> bool:
        """Whether there is no base learner yet."""
        return not self._learnt

    def frozen_weights(self) -> dict[str, str]:
        """The trunk's pretrained weights, where the base learner leaves them as they are."""
        return {} if trains_trunk(self.preset) else super().frozen_weights()

    def load_base_learner(self, state: Mapping[str, Tensor], classes: Mapping[str, int]) -> None:
        """Take over a trained base learner: what `BaseLearner.trainable_state` returned, and its classes' numbers.

        Raises `FssError` naming the first tensor that does not fit.
        """
        self.base_head.fit_classifier(state)
        parts = [self.backbone, self.base_head] if trains_trunk(self.preset) else [self.base_head]
        check_state(state, {k: v for part in parts for k, v in part.state_dict().items()}, subject="base learner",
                    hint=f"was it trained at {self.preset}?")
        for part in parts:
            part.load_state_dict({k: state[k] for k in part.state_dict()})
        self.base_classes, self._learnt = dict(classes), True

    def train(self, mode: bool = True) -> Self:
        """Set the mode. The base learner's normalisations keep their statistics; its dropout is live, as published."""
        super().train(mode)
        for module in self.base_head.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train(False)
        return self

    def trainable_names(self) -> set[str]:
        """All tensors of the decoder and of the base learner, so that a bundle needs no other file."""
        own = ("decoder.", "base_head.", "backbone.") if trains_trunk(self.preset) else ("decoder.", "base_head.")
        return {name for name in self.state_dict() if name.startswith(own)}

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        """Load a result of `trainable_state`, with as many base classes as it has."""
        self.base_head.fit_classifier(state, "base_head.")
        super().load_trainable_state(state)
        self._learnt = True

    def frozen_part(self) -> Sequence[nn.Module]:
        """The trunk, unless it belongs to a base learner, which is another one for every fold."""
        return () if trains_trunk(self.preset) else [self.backbone]

    def encode(self, images: Images) -> Features:
        """Maps "mid", "high", "top", [N, C, h, w] (layer2, 3, 4), and "base", the base logits [N, 1 + n, h, w]."""
        return self.finish(self.encode_frozen(images))

    def finish(self, frozen: Features) -> Features:
        """Add the map "base"."""
        with torch.no_grad():
            base = self.base_head(frozen.maps["top"])
        return Features(maps=frozen.maps | {"base": base}, sizes=frozen.sizes)

    def scenes(self, features: Features, image: Tensor) -> Tensor:
        """Gram matrices [E, C, C] of layer2 of the images [E] on the decoder's grid, without gradients."""
        with torch.no_grad():
            used, of_row = image.unique(return_inverse=True)
            return gram(resize_aligned(features.maps["mid"][used], self.grid(features)))[of_row]

    def mix_shots(self, memory: Memory, features: Features, pairs: Tensor, pair: Tensor, shot: Tensor) -> ShotMix:
        """Weigh the shots of P pairs [P, 2] by how much their "gram" [S, K, C, C] is like the query's.

        pair, shot [E]: the rows of `shot_rows`.
        """
        counts, (sets, image) = memory.counts.to(self.device)[pairs[:, 0]], pairs[pair].unbind(1)
        psi = scene_difference(self.scenes(features, image), memory.tensors["gram"][sets, shot])
        table = psi.new_zeros(len(pairs), memory.tensors["gram"].shape[1])
        table[pair, shot] = psi
        learnt: ShotWeights | None = self.decoder.shot_weights  # type: ignore[assignment]
        weights = equal_weights(counts, table.shape[1]) if learnt is None else learnt(table, counts)
        return ShotMix(psi=table, weights=weights, mixed=(weights * table).sum(dim=1))

    def join(self, meta: Tensor, features: Features, pairs: Tensor, psi: Tensor, own: Tensor | None
             ) -> JoinedPrediction:
        """Join meta logits [P, 2, G, G] with the base logits of the pairs' images; `own` [P] as in `Ensemble`."""
        base = resize_aligned(features.maps["base"], meta.shape[-2:])[pairs[:, 1]]
        ensemble: Ensemble = self.decoder.ensemble  # type: ignore[assignment]
        joined: JoinedPrediction = ensemble(meta, base, psi, own)
        return joined

    def own_classes(self, clip: Clip) -> Tensor:
        """The number among the base classes of every target's class, [B * J]; -1 for a class that is none of them."""
        b, _, j = clip.shape
        names = clip.class_names or ("",) * b
        numbers = torch.tensor([self.base_classes.get(name, -1) for name in names])
        return numbers.repeat_interleave(j).to(self.device)


def weighted_sum(values: Tensor, weights: Tensor, pair: Tensor, shot: Tensor) -> Tensor:
    """Sum over the shots of each pair: values [E, ...] of (pair, shot) rows, weights [P, K] -> [P, ...]."""
    scaled = values * weights[pair, shot].view(-1, *[1] * (values.dim() - 1)).to(values)
    return values.new_zeros(len(weights), *values.shape[1:]).index_add(0, pair, scaled)
