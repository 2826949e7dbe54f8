"""SSP (ECCV 2022): the query's confident pixels support its own segmentation, on a fine-tuned ImageNet trunk."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fss_models.augmentation import VOID, Augmentation
from fss_models.backbones.imagenet import ImagenetBackbone
from fss_models.clip import Clip, Features, Images, Memory, Prediction, PromptBatch
from fss_models.methods.ssp.augmentation import CropAndFlip
from fss_models.methods.ssp.config import SspConfig
from fss_models.methods.ssp.self_support import SspDecision, decide, match, prototypes
from fss_models.prior_guided.blocks import pixel_cross_entropy
from fss_models.prior_guided.pairs import clip_pairs, real_rows, scatter_rows
from fss_models.prior_guided.segmenter import TrunkSegmenter, predict, shot_mean
from fss_models.prior_guided.trunks import Trunk, build_trunk
from fss_models.registry import register_method


@register_method("ssp", config=SspConfig)
class Ssp(TrunkSegmenter):
    """SSP has no parameters of its own: it trains the convolutions of layer2 and layer3, whose features it compares.

    At nano these are EfficientNet's blocks at strides 8 and 16.
    """

    config: SspConfig

    def __init__(
        self, *, preset: str, config: SspConfig, weights: str | None = None, trunk: Trunk | None = None
    ) -> None:
        """`weights` is the trunk's ImageNet file or an official checkpoint; `trunk`, of any size, replaces the
        preset's.
        """
        trunk = trunk or build_trunk(preset, weights, side=config.side, dilation="torchvision", signed=True)
        super().__init__(preset=preset, config=config, trunk=trunk)

    @classmethod
    def augmentation(cls, side: int, *, scale: tuple[float, float]) -> Augmentation:
        """A crop and a flip; `scale` is not used, since photos are not scaled."""
        return CropAndFlip(crop=side)

    def set_trainable(self) -> None:
        """Train the convolutions of layer2 and layer3; their normalisation stays ImageNet's."""
        self.requires_grad_(False)
        for layer in (m for part in self._trained_layers() for m in part.modules()):
            if isinstance(layer, nn.Conv2d):
                layer.weight.requires_grad_(True)

    def frozen_part(self) -> Sequence[nn.Module]:
        """The layers up to layer1."""
        if isinstance(self.backbone, ImagenetBackbone):
            return [self.backbone.layer0, self.backbone.layer1]
        return [self.backbone.trunk.conv_stem, *self.backbone.stage_blocks(0)]

    def encode(self, images: Images) -> Features:
        """Map "high" [N, C, G, G]: layer3, which ends without ReLU."""
        return self.finish(self.encode_frozen(images))

    def encode_frozen(self, images: Images) -> Features:
        """Map "early" [N, C, h, w]: layer1."""
        with torch.no_grad():
            return Features(maps={"early": self.backbone.early(images.pixels.to(self.device))}, sizes=images.sizes)

    def finish(self, frozen: Features) -> Features:
        """Run layer2 and layer3."""
        return Features(maps={"high": self.backbone.after_early(frozen.maps["early"])[1]}, sizes=frozen.sizes)

    def memorise(self, features: Features, prompts: PromptBatch) -> Memory:
        """Tensor prototypes [S, K, 2, C]: mean features of object and background of each shot."""
        rows, image, masks = real_rows(prompts)
        return self._memory(features.maps["high"][image], masks, 1 - masks, prompts, rows)

    def segment(self, memory: Memory, features: Features, pairs: Tensor) -> Prediction:
        """Logits [P, R, R]; the score is the mean probability of the object's pixels."""
        return predict(self.to_image(self.decide(memory, features, pairs).logits))

    def losses(self, clip: Clip) -> dict[str, Tensor]:
        """Cross-entropies: mask and first (logits of the last and the first round), query and support on themselves.

        Void pixels of references, which only training clips tell, belong to neither of the support's prototypes.
        """
        features = self.clip_features(clip)
        count, label = len(clip.references), self.reference_labels(clip)
        rows, image, masks = real_rows(clip.prompts)
        own = features.maps["high"][image]
        masks = masks.to(self.device)
        memory = self._memory(own, masks, (1 - masks) * (label != VOID)[:, None], clip.prompts, rows)
        found = self.decide(memory, features, clip_pairs(clip))
        truth = self.target_labels(clip)
        named = {"first": pixel_cross_entropy(self.to_image(found.first.logits), truth)}
        if found.second:
            named["mask"] = pixel_cross_entropy(self.to_image(found.logits), truth)
        named["query"] = pixel_cross_entropy(self.match_itself(features.maps["high"][count:], truth), truth)
        named["support"] = self.config.support_weight * pixel_cross_entropy(self.match_itself(own, label), label)
        return named

    def decide(self, memory: Memory, features: Features, pairs: Tensor) -> SspDecision:
        """The logits of every round."""
        pairs = pairs.to(self.device)
        given = shot_mean(memory.tensors["prototypes"], memory.counts)[pairs[:, 0]]
        return decide(features.maps["high"][pairs[:, 1]], given, self.config)

    def match_itself(self, features: Tensor, label: Tensor) -> Tensor:
        """Logits [E, 2, R, R] of features [E, C, G, G] compared with their own prototypes under label [E, R, R]."""
        own = prototypes(features, *_sides(label))[..., None, None]
        return self.to_image(match(features, own[:, 0], own[:, 1], self.config.temperature))

    def _memory(
        self, features: Tensor, foreground: Tensor, background: Tensor, prompts: PromptBatch, rows: Tensor
    ) -> Memory:
        masks = (m.to(self.device) for m in (foreground, background))
        made = scatter_rows(prototypes(features, *masks), rows, prompts.kind.shape)
        return Memory(tensors={"prototypes": made}, counts=prompts.counts)

    def _trained_layers(self) -> Sequence[nn.Module]:
        if isinstance(self.backbone, ImagenetBackbone):
            return [self.backbone.layer2, self.backbone.layer3]
        return [*self.backbone.stage_blocks(1), *self.backbone.stage_blocks(2)]


def _sides(label: Tensor) -> tuple[Tensor, Tensor]:
    """Masks of object and background [E, 1, R, R] of labels [E, R, R]."""
    return (label == 1)[:, None].float(), (label == 0)[:, None].float()
