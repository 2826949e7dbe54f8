"""PFENet (TPAMI 2020): a training-free prior mask and multi-scale feature enrichment on a frozen ImageNet trunk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fss_models.backbones.imagenet import ImagenetBackbone
from fss_models.clip import Clip, Features, Memory, Prediction, PromptBatch
from fss_models.errors import FssError
from fss_models.methods.pfenet.config import PfenetConfig
from fss_models.methods.pfenet.decoder import PfenetDecoder
from fss_models.prior_guided.blocks import enliven, pixel_cross_entropy
from fss_models.prior_guided.maps import masked_mean, object_first, resize_aligned
from fss_models.prior_guided.marks import mark_masks
from fss_models.prior_guided.pairs import clip_pairs, mean_over_shots, real_rows, scatter_rows
from fss_models.prior_guided.segmenter import TrunkSegmenter, predict, shot_mean
from fss_models.prior_guided.trunks import LIVELY, TRUNKS, Trunk, build_trunk
from fss_models.registry import register_method

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@register_method("pfenet", config=PfenetConfig)
class Pfenet(TrunkSegmenter):
    """PFENet: K shots average their prototypes and prior masks."""

    presets: ClassVar[tuple[str, ...]] = TRUNKS
    config: PfenetConfig
    decoder: PfenetDecoder

    def __init__(
        self, *, preset: str, config: PfenetConfig, weights: str | None = None, trunk: Trunk | None = None
    ) -> None:
        """`weights` is the trunk's ImageNet file or an official checkpoint; `trunk`, of any size, replaces the
        preset's.
        """
        trunk = trunk or build_trunk(preset, weights, side=config.side)
        super().__init__(preset=preset, config=config, trunk=trunk)
        mid, high, _ = self.backbone.channels
        self.decoder = PfenetDecoder(config, channels=mid + high, width=config.width or trunk.width)
        if preset in LIVELY:
            enliven(self.decoder)
        normalised = isinstance(self.backbone, ImagenetBackbone)
        if config.backbone_bn == "batch" and not normalised:
            raise FssError(f"preset {preset!r} has no batch normalisation of its own", hint="take backbone_bn: frozen")
        if isinstance(self.backbone, ImagenetBackbone):
            self.backbone.batch_statistics = config.backbone_bn != "frozen"
        self.moves_statistics = normalised and config.backbone_bn != "frozen"

    def trainable_names(self) -> set[str]:
        """The decoder's parameters, and the trunk's statistics where training moves them."""
        moved = {n for n in self.state_dict() if n.startswith("backbone.") and n.endswith(_STATISTICS)}
        return super().trainable_names() | (moved if self.moves_statistics else set())

    def frozen_part(self) -> Sequence[nn.Module]:
        """The trunk; nothing where training moves its statistics."""
        return () if self.moves_statistics else super().frozen_part()

    def memorise(self, features: Features, prompts: PromptBatch) -> Memory:
        """Tensors prototypes [S, K, D] and top (masked cells of layer4) [S, K, L, C].

        filled [S, K] is the number of cells of `top` that are not zero; they come first.
        """
        rows, image, masks = real_rows(prompts)
        masks = masks.to(self.device)
        high = features.maps["high"][image]
        made = self._describe(self.fused(features, image), self.masked_top(high, masks), masks)
        return Memory(tensors={k: scatter_rows(v, rows, prompts.kind.shape) for k, v in made.items()},
                      counts=prompts.counts)

    def segment(self, memory: Memory, features: Features, pairs: Tensor) -> Prediction:
        """Logits [P, R, R]; the score is the mean probability of the object's pixels."""
        return predict(self.to_image(self.decide(memory, features, pairs)[0]))

    def losses(self, clip: Clip) -> dict[str, Tensor]:
        """Cross-entropy of the targets: loss mask of the logits, loss aux of the scales' own logits."""
        if self.moves_statistics and self.training:
            memory, features = self._in_batch_mode(clip)
            pairs = clip_pairs(clip) - torch.tensor([0, len(clip.references)])
        else:
            features = self.clip_features(clip)
            memory, pairs = self.memorise(features, clip.prompts), clip_pairs(clip)
        logits, scales = self.decide(memory, features, pairs)
        truth = self.target_labels(clip)
        each = torch.stack([pixel_cross_entropy(self.to_image(s), truth) for s in scales])
        return {"mask": pixel_cross_entropy(self.to_image(logits), truth), "aux": self.config.aux_weight * each.mean()}

    def decide(self, memory: Memory, features: Features, pairs: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits of background and object [P, 2, G, G], and those of the scales [P, 2, n, n]."""
        pairs = pairs.to(self.device)
        shots, pair, _ = self.shot_priors(memory, features, pairs)
        prior = mean_over_shots(shots, pair, len(pairs))
        used, of_row = pairs[:, 1].unique(return_inverse=True)
        query = self.decoder.down_query(self.fused(features, used))[of_row]
        prototype = shot_mean(memory.tensors["prototypes"], memory.counts)[pairs[:, 0]]
        found: tuple[Tensor, list[Tensor]] = self.decoder(query, prototype, prior)
        return found

    def _describe(self, fused: Tensor, top: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """What the memory holds of E references: fused [E, C, G, G], masked layer4 [E, C, h, w], masks [E, 1, R, R]."""
        reduced = self.decoder.down_supp(fused)
        cells, filled = object_first(top)
        return {"prototypes": masked_mean(reduced, resize_aligned(masks, reduced.shape[-2:])), "top": cells,
                "filled": filled}

    def _in_batch_mode(self, clip: Clip) -> tuple[Memory, Features]:
        """Memory and targets' features with the passes of the official code: the targets, then shot by shot.

        Each pass of the trunk normalises with its own batch and moves the statistics.
        """
        targets = self.encode(clip.targets)
        b, k, _ = clip.shape
        masks = mark_masks(clip.prompts).to(self.device)
        pixels = clip.references.pixels.to(self.device).unflatten(0, (b, k))
        made: list[dict[str, Any]] = []
        for shot in range(k):
            with torch.no_grad():
                mid, high = self.backbone.levels(pixels[:, shot])
            own = masks[:, shot, None]
            features = Features(maps={"mid": mid, "high": high}, sizes=clip.references.sizes[shot::k])
            made.append(self._describe(self.fused(features, torch.arange(b)), self.masked_top(high, own), own))
        tensors = {name: torch.stack([m[name] for m in made], dim=1) for name in made[0]}
        return Memory(tensors=tensors, counts=clip.prompts.counts), targets
