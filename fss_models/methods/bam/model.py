"""BAM (CVPR 2022): PFENet's prior and prototype, scene differences that weigh the shots, and a base learner."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fss_models.base_learner.ensemble import JoinedPrediction
from fss_models.base_learner.head import PspHead
from fss_models.base_learner.segmenter import BaseLearnerSegmenter, ShotMix, weighted_sum
from fss_models.clip import Clip, Features, Memory, Prediction, PromptBatch
from fss_models.methods.bam.config import BamConfig
from fss_models.methods.bam.decoder import BamDecoder, MetaPrediction
from fss_models.prior_guided.blocks import enliven, pixel_cross_entropy
from fss_models.prior_guided.maps import masked_mean, object_first, resize_aligned
from fss_models.prior_guided.pairs import clip_pairs, real_rows, scatter_rows
from fss_models.prior_guided.segmenter import predict
from fss_models.prior_guided.trunks import LIVELY, Trunk
from fss_models.registry import register_method


@dataclass(frozen=True, kw_only=True)
class BamForward:
    """What `segment` computes for P pairs: shots joined, the meta learner's maps, and both predictions joined.

    shot_priors [E, 1, G, G] are those of the (pair, shot) rows; prior [P, 1, G, G], prototype [P, D].
    """

    shots: ShotMix
    shot_priors: Tensor
    prior: Tensor
    prototype: Tensor
    meta: MetaPrediction
    joined: JoinedPrediction


@register_method("bam", config=BamConfig)
class Bam(BaseLearnerSegmenter):
    """BAM at a preset of `prior_guided.trunks`; the base learner is loaded with `load_base_learner`."""

    config: BamConfig
    decoder: BamDecoder

    def __init__(
        self, *, preset: str, config: BamConfig, weights: str | None = None, trunk: Trunk | None = None,
        head: PspHead | None = None,
    ) -> None:
        super().__init__(preset=preset, config=config, weights=weights, trunk=trunk, head=head)
        channels = sum(self.backbone.channels[:2])
        self.decoder = BamDecoder(config, channels=channels, width=config.width or self.trunk.width)
        if preset in LIVELY:
            for name, part in self.decoder.named_children():
                if name not in ("ensemble", "shot_weights"):  # the ensemble starts as the meta learner's prediction
                    enliven(part)

    def memorise(self, features: Features, prompts: PromptBatch) -> Memory:
        """Tensors prototype [S, K, D], gram [S, K, C2, C2], top (masked cells of layer4) [S, K, L, C].

        filled [S, K] is the number of cells of `top` that are not zero; they come first.
        """
        rows, image, masks = real_rows(prompts)
        image, masks = image.to(self.device), masks.to(self.device)
        reduced = self.decoder.down_supp(self.fused(features, image))
        top, filled = object_first(self.masked_top(features.maps["high"][image], masks))
        made = {"prototype": masked_mean(reduced, resize_aligned(masks, reduced.shape[-2:])), "top": top,
                "filled": filled, "gram": self.scenes(features, image)}
        return Memory(tensors={k: scatter_rows(v, rows, prompts.kind.shape) for k, v in made.items()},
                      counts=prompts.counts)

    def segment(self, memory: Memory, features: Features, pairs: Tensor) -> Prediction:
        """Logits [P, R, R], object minus background; the score is the mean probability of the object's pixels."""
        return predict(self.to_image(self.forward_pairs(memory, features, pairs).joined.final))

    def forward_pairs(self, memory: Memory, features: Features, pairs: Tensor, own: Tensor | None = None
                      ) -> BamForward:
        """Everything that `segment` computes; `own` [P] is the base class that is no background in training."""
        pairs = pairs.to(self.device)
        priors, pair, shot = self.shot_priors(memory, features, pairs)
        shots = self.mix_shots(memory, features, pairs, pair, shot)
        prototypes = memory.tensors["prototype"][pairs[pair, 0], shot]
        prior, prototype = (weighted_sum(x, shots.weights, pair, shot) for x in (priors, prototypes))
        used, of_pair = pairs[:, 1].unique(return_inverse=True)
        query = self.decoder.down_query(self.fused(features, used))[of_pair]
        meta = self.decoder(query, prototype, prior)
        return BamForward(shots=shots, shot_priors=priors, prior=prior, prototype=prototype, meta=meta,
                          joined=self.join(meta.logits, features, pairs, shots.mixed, own))

    def losses(self, clip: Clip) -> dict[str, Tensor]:
        """Cross-entropy of the joined prediction (final) and of the meta learner alone (meta)."""
        features = self.clip_features(clip)
        found = self.forward_pairs(self.memorise(features, clip.prompts), features, clip_pairs(clip),
                                   self.own_classes(clip))
        truth = self.target_labels(clip)
        return {"final": pixel_cross_entropy(self.to_image(found.joined.final), truth),
                "meta": self.config.meta_weight * pixel_cross_entropy(self.to_image(found.meta.logits), truth)}
