"""CyCTR (NeurIPS 2021): query features read those support features that lead back to their own class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fss_models.augmentation import VOID
from fss_models.clip import Clip, Features, Memory, Prediction, PromptBatch
from fss_models.methods.cyctr.config import CyctrConfig
from fss_models.methods.cyctr.decoder import CyctrDecoder, class_dice
from fss_models.methods.cyctr.sampling import FACTORS, SupportTokens, draw, object_cells
from fss_models.methods.cyctr.transformer import Drawn
from fss_models.optimisation import Optimizer, ParameterGroup
from fss_models.prior_guided.blocks import enliven
from fss_models.prior_guided.maps import masked_mean, object_first, resize_aligned
from fss_models.prior_guided.pairs import clip_pairs, mean_over_shots, real_rows, scatter_rows
from fss_models.prior_guided.segmenter import TrunkSegmenter, predict, shot_mean
from fss_models.prior_guided.trunks import Trunk, build_trunk
from fss_models.registry import register_method

ORDER = ("mid", "high")  # layer2 comes first
UNUSED = "decoder.addtional_proj."
CELLS = tuple(f.name for f in fields(SupportTokens))


@register_method("cyctr", config=CyctrConfig)
class Cyctr(TrunkSegmenter):
    """CyCTR: the cells of K shots are read together; prototypes and prior masks are averaged.

    In training the cells are drawn anew in every layer, in evaluation once for each support set (`memorise`).
    """

    config: CyctrConfig
    decoder: CyctrDecoder

    def __init__(
        self, *, preset: str, config: CyctrConfig, weights: str | None = None, trunk: Trunk | None = None
    ) -> None:
        """`weights` is the trunk's ImageNet file or an official checkpoint; `trunk`, of any size, replaces the
        preset's.
        """
        trunk = trunk or build_trunk(preset, weights, side=config.side, dilation="torchvision", nano_grid="high")
        super().__init__(preset=preset, config=config, trunk=trunk)
        mid, high, _ = self.backbone.channels
        self.decoder = CyctrDecoder(config, channels=mid + high, width=config.width or trunk.width)
        if preset == "debug":
            enliven(self.decoder)

    def set_trainable(self) -> None:
        """Train the decoder without its unused part."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.startswith("decoder.") and not name.startswith(UNUSED))

    def trainable_names(self) -> set[str]:
        """All of the decoder."""
        return super().trainable_names() | {n for n in self.state_dict() if n.startswith(UNUSED)}

    def own_groups(self) -> Sequence[ParameterGroup]:
        """The transformer has AdamW and a constant rate, unless `transformer_lr` is 0; its biases have no weight decay.
        """
        named = dict(self.decoder.transformer.named_parameters())
        sides = [([p for n, p in named.items() if ("bias" in n) == biases], biases) for biases in (False, True)]
        kind: Optimizer | Literal[""] = "adamw" if self.config.transformer_lr else ""
        return [ParameterGroup(parameters=own, optimizer=kind, lr=self.config.transformer_lr,
                               weight_decay=0.0 if biases else self.config.transformer_weight_decay)
                for own, biases in sides]

    def memorise(self, features: Features, prompts: PromptBatch) -> Memory:
        """Tensors prototypes [S, K, D], top (masked cells of layer4) [S, K, L, C] and the drawn cells [S, N].

        filled [S, K] is the number of cells of `top` that are not zero; they come first.
        """
        memory, tokens, _ = self.describe(features, prompts, None)
        drawn = self.draw_for_evaluation(tokens, prompts.counts)
        return Memory(tensors=memory.tensors | vars(drawn), counts=memory.counts)

    def segment(self, memory: Memory, features: Features, pairs: Tensor) -> Prediction:
        """Logits [P, R, R]; the score is the mean probability of the object's pixels."""
        pairs = pairs.to(self.device)
        drawn = SupportTokens(**{k: memory.tensors[k][pairs[:, 0]] for k in CELLS})
        padded = torch.zeros(len(pairs), *self.grid(features), dtype=torch.bool, device=self.device)
        return predict(self.to_image(self.decide(memory, features, pairs, padded, lambda _: drawn)[0]))

    def losses(self, clip: Clip) -> dict[str, Tensor]:
        """Dice losses: mask on the targets, aux on the references, which the targets' prototypes segment.

        Void pixels count as padding, which is void after the augmentation.
        """
        features, (_, k, j), pairs = self.clip_features(clip), clip.shape, clip_pairs(clip)
        truth, label = self.target_labels(clip), self.reference_labels(clip)
        padded, of_support = self.padding(truth, label)
        memory, tokens, reduced = self.describe(features, clip.prompts, of_support)
        drawn = self.drawing(tokens, clip.prompts.counts, pairs[:, 0])
        grid = on_grid(padded, self.grid(features))
        logits, last, query = self.decide(memory, features, pairs, grid, drawn)
        prototypes = self.decoder.query_prototypes(last, query, (truth == 1)[:, None].float())
        rows = torch.arange(len(label)).view(-1, 1, k).expand(-1, j, k).flatten()
        support = self.decoder.support_logits(reduced[rows], prototypes.repeat_interleave(k, dim=0))
        return {"mask": class_dice(self.to_image(logits), truth),
                "aux": self.config.aux_weight * class_dice(self.to_image(support), label[rows])}

    def padding(self, truth: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Padded pixels of targets and references, bool, from their labels [N, R, R]."""
        return truth == VOID, label == VOID

    def decide(
        self, memory: Memory, features: Features, pairs: Tensor, padded: Tensor, drawn: Drawn
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of background and object [P, 2, G, G], last and reduced features of the queries [P, D, G, G].

        `padded` [P, G, G] are cells of the queries; `drawn` gives the support cells that a layer reads.
        """
        pairs = pairs.to(self.device)
        shots, pair, _ = self.shot_priors(memory, features, pairs)
        prior = mean_over_shots(shots, pair, len(pairs))
        used, of_row = pairs[:, 1].unique(return_inverse=True)
        reduced = self.decoder.adjust_feature_qry(self.fused(features, used, ORDER))[of_row]
        prototype = shot_mean(memory.tensors["prototypes"], memory.counts)[pairs[:, 0]]
        logits, last = self.decoder(reduced, prototype, prior, padded, drawn)
        return logits, last, reduced

    def describe(
        self, features: Features, prompts: PromptBatch, padded: Tensor | None
    ) -> tuple[Memory, SupportTokens, Tensor]:
        """The memory without drawn cells, all cells of the sets, and the references' reduced features [E, D, G, G].

        `padded` [E, R, R] bool are pixels of the references; None: none are.
        """
        (rows, image, masks), shape, size = real_rows(prompts), prompts.kind.shape, self.grid(features)
        masks = masks.to(self.device)
        reduced = self.decoder.adjust_feature_supp(self.fused(features, image, ORDER))
        prototypes = masked_mean(reduced, resize_aligned(masks, size))
        merged = self.decoder.merge_support(reduced, prototypes)
        top = features.maps["top"][image]
        cells, filled = object_first(top * resize_aligned(masks, top.shape[-2:]))
        closed = torch.zeros(masks.shape[0], *self.grid(features), dtype=torch.bool, device=self.device)
        made = {"keys": merged.flatten(2).transpose(1, 2), "object": object_cells(masks, size).flatten(1),
                "padded": (closed if padded is None else on_grid(padded, size)).flatten(1)}
        made["real"] = torch.ones_like(made["object"])
        tokens = SupportTokens(**{k: scatter_rows(v, rows, shape).flatten(1, 2) for k, v in made.items()})
        kept = {"prototypes": prototypes, "top": cells, "filled": filled}
        return Memory(tensors={k: scatter_rows(v, rows, shape) for k, v in kept.items()},
                      counts=prompts.counts), tokens, reduced

    def drawing(self, tokens: SupportTokens, shots: Tensor, sets: Tensor) -> Drawn:
        """The cells of `sets` [P] that a layer reads: in training drawn anew for each layer and row."""
        if not self.training:
            once = self.draw_for_evaluation(tokens, shots).take(sets.to(self.device))
            return lambda _: once
        rows, counts = tokens.take(sets.to(self.device)), shots.to(sets.device)[sets]
        return lambda _: draw(rows, counts, self.config, lambda n: self.permutation(n, None),
                              self.factor(int(counts.max())))

    def draw_for_evaluation(self, tokens: SupportTokens, shots: Tensor) -> SupportTokens:
        """Draw the cells of every set in the same way, whatever sets are beside it."""
        def permutation(count: int) -> Tensor:
            return self.permutation(count, torch.Generator().manual_seed(self.config.sampling_seed))

        return draw(tokens, shots, self.config, permutation)

    def permutation(self, count: int, generator: torch.Generator | None) -> Tensor:
        """A random order of `count` cells, [count] int64."""
        return torch.randperm(count, generator=generator)

    def factor(self, shots: int) -> float:
        """The random factor by which a layer's numbers of drawn cells are scaled in training."""
        low, high = FACTORS[shots == 1]
        return low + (high - low) * float(torch.rand(()))


def on_grid(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Shrink pixels [E, R, R] bool to cells [E, h, w] by nearest neighbour."""
    return F.interpolate(pixels[:, None].float(), size=size, mode="nearest")[:, 0] > 0.5
