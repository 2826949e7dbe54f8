"""HDMNet (CVPR 2023): a transformer that matches query and support at three resolutions, on BAM's base learner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fss_models.base_learner.ensemble import Ensemble, JoinedPrediction, ShotWeights
from fss_models.base_learner.head import PspHead
from fss_models.base_learner.segmenter import BaseLearnerSegmenter, ShotMix
from fss_models.clip import Clip, Features, Images, Memory, Prediction, PromptBatch
from fss_models.methods.hdmnet.config import HdmnetConfig
from fss_models.methods.hdmnet.losses import distillation
from fss_models.methods.hdmnet.transformer import HEADS, Level, Matched, Transformer
from fss_models.optimisation import ParameterGroup
from fss_models.prior_guided.blocks import merge, pixel_cross_entropy, reduction
from fss_models.prior_guided.maps import masked_mean, object_first, prior, resize_aligned
from fss_models.prior_guided.pairs import gather_shots, mean_over_shots, real_rows, scatter_rows, shot_rows
from fss_models.prior_guided.segmenter import predict, shot_mean
from fss_models.prior_guided.trunks import Trunk
from fss_models.registry import register_method

PRIOR_GAIN = 10.0  # the prior enters its convolution ten times as strong
OTHERS_FACTOR = 10.0  # learning rate of all layers outside the transformer, times the transformer's
WIDTH_SHARE = 4  # D / E


class HdmnetDecoder(nn.Module):
    """The trained layers, over `channels` of layer3 and layer2 together. Names are the official codes'."""

    def __init__(self, config: HdmnetConfig, *, channels: int, width: int) -> None:
        super().__init__()
        embed = config.embed or max(width // WIDTH_SHARE, max(HEADS))
        self.down_query, self.down_supp = (reduction(channels, width, config.feature_dropout) for _ in range(2))
        self.query_merge, self.supp_merge = merge(2 * width + 2, embed), merge(2 * width, embed)
        self.transformer = Transformer(embed, dropout=config.dropout, norms=config.decoder_bn)
        self.ensemble = Ensemble()
        self.shot_weights = ShotWeights(config.shots, config.kshot_order) if config.shots > 1 else None


@dataclass(frozen=True, kw_only=True)
class SupportRows:
    """E references: maps of their masked photos, reduced features, prototypes [E, D], merged features, levels."""

    features: Features
    reduced: Tensor
    prototype: Tensor
    merged: Tensor
    levels: list[Level]
    masks: list[Tensor]  # of each level, [E, 1, h, w] in {0, 1}


@dataclass(frozen=True, kw_only=True)
class HdmnetForward:
    """What `segment` computes for P pairs: shots joined, prior [P, 2, h, w], the query's maps, and the prediction."""

    shots: ShotMix
    prior: Tensor
    reduced: Tensor
    merged: Tensor
    levels: list[Level]
    matched: Matched
    joined: JoinedPrediction


@register_method("hdmnet", config=HdmnetConfig)
class Hdmnet(BaseLearnerSegmenter):
    """HDMNet at a preset of `prior_guided.trunks`; the base learner is loaded with `load_base_learner`.

    The trunk sees support photos whose background is the mean colour, so that `memorise` runs it again.
    """

    config: HdmnetConfig
    decoder: HdmnetDecoder

    def __init__(
        self, *, preset: str, config: HdmnetConfig, weights: str | None = None, trunk: Trunk | None = None,
        head: PspHead | None = None,
    ) -> None:
        super().__init__(preset=preset, config=config, weights=weights, trunk=trunk, head=head)
        channels = sum(self.backbone.channels[:2])
        self.decoder = HdmnetDecoder(config, channels=channels, width=config.width or self.trunk.width)

    def set_trainable(self) -> None:
        """Train the decoder, but not shot weights that stay in the official order, which its optimiser lacks."""
        super().set_trainable()
        if self.decoder.shot_weights is not None and self.config.kshot_order == "official":
            self.decoder.shot_weights.requires_grad_(False)

    def own_groups(self) -> Sequence[ParameterGroup]:
        """All layers outside the transformer learn ten times as fast as it does."""
        others = [p for name, p in self.decoder.named_parameters()
                  if p.requires_grad and not name.startswith("transformer.")]
        return [ParameterGroup(parameters=others, factor=OTHERS_FACTOR)]

    def frozen_part(self) -> Sequence[nn.Module]:
        """Nothing: half of the trunk's work is on masked photos, which cannot be stored."""
        return ()

    def encode(self, images: Images) -> Features:
        """Maps of `BaseLearnerSegmenter.encode`, "described" [N, C, h, w] (the base learner's), and "pixels"."""
        found = super().encode(images)
        return Features(maps=found.maps | {"pixels": images.pixels.to(self.device)}, sizes=found.sizes)

    def finish(self, frozen: Features) -> Features:
        """Add the maps "described" and "base"."""
        with torch.no_grad():
            described = self.base_head.describe(frozen.maps["top"])
            base = self.base_head.classify(described)
        return Features(maps=frozen.maps | {"described": described, "base": base}, sizes=frozen.sizes)

    def memorise(self, features: Features, prompts: PromptBatch) -> Memory:
        """Tensors prototype [S, K, D], gram [S, K, C2, C2], level0 ... level2 (tokens) [S, K, L, E] and their mask0 ...

        top [S, K, L, C] are the masked cells of the described and the layer4 maps, joined; filled [S, K] is the number
        of those that are not zero, which come first.
        """
        rows, image, masks = real_rows(prompts)
        masks = masks.to(self.device)
        found = self.describe_support(features.maps["pixels"][image.to(self.device)], masks)
        maps = torch.cat([found.features.maps[name] for name in ("described", "top")], dim=1)
        top, filled = object_first(maps * F.interpolate(masks, size=maps.shape[-2:], mode="nearest"))
        made = {"prototype": found.prototype, "top": top, "filled": filled,
                "gram": self.scenes(found.features, torch.arange(len(rows), device=self.device))}
        for i, (level, mask) in enumerate(zip(found.levels, found.masks, strict=True)):
            made |= {f"level{i}": level.tokens, f"mask{i}": mask.flatten(1)}
        return Memory(tensors={k: scatter_rows(v, rows, prompts.kind.shape) for k, v in made.items()},
                      counts=prompts.counts)

    def describe_support(self, pixels: Tensor, masks: Tensor) -> SupportRows:
        """The support's side of E references with photos [E, 3, R, R] and masks [E, 1, R, R]."""
        e = len(pixels)
        sizes = torch.tensor([[self.side, self.side]] * e, dtype=torch.int64)
        seen = self.finish(self.encode_frozen(Images(pixels=pixels * masks, sizes=sizes)))
        reduced = self.decoder.down_supp(self.fused(seen, torch.arange(e, device=self.device)))
        prototype = masked_mean(reduced, resize_aligned(masks, reduced.shape[-2:]))
        tiled = prototype[..., None, None].expand_as(reduced)
        merged = self.decoder.supp_merge(torch.cat([reduced, tiled], dim=1))
        levels = self.decoder.transformer.describe(merged)
        small = [F.interpolate(masks, size=level.size, mode="nearest") for level in levels]
        return SupportRows(features=seen, reduced=reduced, prototype=prototype, merged=merged, levels=levels,
                           masks=small)

    def segment(self, memory: Memory, features: Features, pairs: Tensor) -> Prediction:
        """Logits [P, R, R], object minus background; the score is the mean probability of the object's pixels."""
        return predict(self.to_image(self.forward_pairs(memory, features, pairs).joined.final))

    def forward_pairs(self, memory: Memory, features: Features, pairs: Tensor, own: Tensor | None = None
                      ) -> HdmnetForward:
        """Everything that `segment` computes; `own` [P] is the base class that is no background in training."""
        pairs = pairs.to(self.device)
        counts = memory.counts.to(self.device)
        pair, shot = shot_rows(counts[pairs[:, 0]])
        shots = self.mix_shots(memory, features, pairs, pair, shot)
        guess = self._prior(memory, features, pairs, pair, shot)
        sets, image = pairs.unbind(1)
        used, of_pair = image.unique(return_inverse=True)
        reduced = self.decoder.down_query(self.fused(features, used))[of_pair]
        prototype = shot_mean(memory.tensors["prototype"], counts)[sets]
        tiled = prototype[..., None, None].expand_as(reduced)
        merged = self.decoder.query_merge(torch.cat([reduced, tiled, PRIOR_GAIN * guess], dim=1))
        levels = self.decoder.transformer.describe(merged)
        tokens, masks = ([memory.tensors[f"{name}{i}"][sets].flatten(1, 2) for i in range(len(HEADS))]
                         for name in ("level", "mask"))
        matched = self.decoder.transformer(levels, tokens, masks, guess)
        return HdmnetForward(shots=shots, prior=guess, reduced=reduced, merged=merged, levels=levels, matched=matched,
                             joined=self.join(matched.logits, features, pairs, shots.mixed, own))

    def _prior(self, memory: Memory, features: Features, pairs: Tensor, pair: Tensor, shot: Tensor) -> Tensor:
        """Highest cosines to the object's cells, by the described and the layer4 maps, [P, 2, G, G]; mean of the shots.
        """
        sets, image = pairs[pair].unbind(1)
        cells = gather_shots(memory, sets, shot)["top"]
        parts = cells.split([features.maps[name].shape[1] for name in ("described", "top")], dim=2)
        each = [prior(cell, features.maps[name][image])
                for name, cell in zip(("described", "top"), parts, strict=True)]
        mean = mean_over_shots(torch.cat(each, dim=1), pair, len(pairs))
        return resize_aligned(mean, self.grid(features))

    def losses(self, clip: Clip) -> dict[str, Tensor]:
        """Cross-entropy of the joined prediction (final) and of the meta learner alone (meta), and distillation."""
        b, _, j = clip.shape
        photos = Features(maps={"pixels": clip.references.pixels.to(self.device)}, sizes=clip.references.sizes)
        targets = torch.arange(b * j)
        found = self.forward_pairs(self.memorise(photos, clip.prompts), self.encode(clip.targets),
                                   torch.stack([targets // j, targets], dim=1), self.own_classes(clip))
        truth = self.target_labels(clip)
        steps = distillation(found.matched.correlation[::-1], truth)
        return {"final": pixel_cross_entropy(self.to_image(found.joined.final), truth),
                "meta": self.config.meta_weight * pixel_cross_entropy(self.to_image(found.matched.logits), truth),
                "distil": self.config.distil_weight * torch.stack(steps).mean()}
