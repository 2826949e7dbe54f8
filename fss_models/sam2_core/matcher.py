"""Prompt and propagate as semantic matching: references are remembered, targets attend to them.

This is the base of the methods that use SAM 2's memory unchanged: frozen SAM 2 and SANSA (NeurIPS 2025, section 3).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from fss_models.clip import Features, Images, Memory, Prediction, PromptBatch, PromptKind
from fss_models.preprocess import Preprocessor
from fss_models.presets import preprocessor
from fss_models.sam2_core.build import build_sam2, origin
from fss_models.sam2_core.core import DecodedMasks, MemoryEntries, MemoryRules, Sam2Core, take
from fss_models.segmenter import Negatives, Segmenter


class MemoryMatcher(Segmenter):
    """Encodes, memorises and segments with SAM 2's image encoder, memory encoder, memory attention and decoder."""

    instance_sources: ClassVar[frozenset[str]] = frozenset({"pieces", "prompts"})

    def __init__(
        self, *, preset: str, config: Any, weights: str | None, sam: Any = None, rules: MemoryRules | None = None
    ) -> None:
        """`sam` is a `SAM2Base` of any size that already holds its weights; without it the preset's is built.

        `weights` is as in `build_sam2`.
        """
        resize = Preprocessor(side=int(sam.image_size)) if sam is not None else preprocessor(preset)
        super().__init__(preset=preset, preprocessor=resize, config=config)
        self.core = Sam2Core(sam if sam is not None else build_sam2(preset, weights=weights), rules)
        self._checkpoint = sam is not None or origin(self.core.sam).checkpoint

    @classmethod
    def negatives(cls, config: Any) -> Negatives:
        """A negative photo is remembered with an empty mask (SANSA, appendix)."""
        return "photos"

    @property
    def untrained(self) -> bool:
        """Whether neck, memory and decoder hold random values: no checkpoint was given, and none ships."""
        return not self._checkpoint

    @property
    def pretrained_parts(self) -> bool:
        """Whether neck, memory and decoder came from a checkpoint, so that only adapters need training."""
        return self._checkpoint

    def frozen_weights(self) -> dict[str, str]:
        """Pretrained weights of the trunk and shipped ones; the caller records a file that it gave itself."""
        sam = self.core.sam
        return {**getattr(sam.image_encoder.trunk, "pretrained", {}), **origin(sam).shipped}

    def encode(self, images: Images) -> Features:
        """Maps f0, f1, f2 of `Sam2Core.encode`."""
        return Features(maps=self.core.encode(images.pixels.to(self.device)), sizes=images.sizes)

    def memorise(self, features: Features, prompts: PromptBatch) -> Memory:
        """Tensors features [S, K, Cm, g, g] and pointers [S, K, C]; a set may mix all kinds of prompt."""
        return self.as_memory(self.remember(features, prompts)[0], prompts)

    def as_memory(self, entries: MemoryEntries, prompts: PromptBatch) -> Memory:
        """Arrange entries [S * K] of the references of `prompts` as a memory of S sets."""
        shape = prompts.kind.shape
        return Memory(tensors={"features": entries.features.unflatten(0, shape),
                               "pointers": entries.pointers.unflatten(0, shape)}, counts=prompts.counts)

    def segment(self, memory: Memory, features: Features, pairs: Tensor) -> Prediction:
        """Logits at stride 4 of the candidate with the highest predicted IoU; the score is that IoU."""
        maps = take(features.maps, pairs[:, 1])
        logits, ious, _ = self.decode_targets(memory.take(pairs[:, 0]), maps).best()
        return Prediction(logits=logits, scores=ious.clamp(0, 1))

    def decode_points(self, memory: Memory, features: Features, pairs: Tensor, points: Tensor,
                      labels: Tensor) -> tuple[Tensor, Tensor]:
        """As `Segmenter.decode_points`, with SAM 2's decoder on the image without memory."""
        return self.core.decode_points(take(features.maps, pairs[:, 1]), points, labels)

    def decode_targets(self, memory: Memory, maps: dict[str, Tensor], *, predicted: int = 0) -> DecodedMasks:
        """Three candidate masks of each target i, which attends to set i; its last `predicted` entries are targets."""
        attended = self._attend(memory, maps["f2"], predicted)
        return self.core.decode(maps, attended, candidates=True)

    def _attend(self, memory: Memory, f2: Tensor, predicted: int) -> Tensor:
        """Attend to sets of equal size together, since attention over padding differs from attention without it."""
        out = torch.empty_like(f2)
        for count in memory.counts.unique().tolist():
            rows = (memory.counts == count).nonzero()[:, 0].to(f2.device)
            held = {k: v[rows][:, :count] for k, v in memory.tensors.items()}
            attended = self.core.attend(f2[rows], held["features"], held["pointers"], count - predicted)
            out = out.index_copy(0, rows, attended.to(out))
        return out

    def remember(self, features: Features, prompts: PromptBatch) -> tuple[MemoryEntries, Tensor]:
        """One entry for each (set, reference) [S * K], zeros where padded, and the references' logits [S * K, q, q].

        q = R / 4. References with equally many points are decoded together, since padding points change the decoder's
        output.
        """
        kind, image = prompts.kind.flatten(), prompts.image.flatten()
        used = torch.where(kind > PromptKind.MASK, (prompts.labels != -1).sum(dim=2).flatten(), 0)
        features_out, pointers, logits = self._blank(features, len(kind))
        for count in used[kind != PromptKind.PAD].unique().tolist():
            rows = ((used == count) & (kind != PromptKind.PAD)).nonzero()[:, 0]
            made, seen = self._group(take(features.maps, image[rows].to(self.device)), prompts, rows, count)
            at = rows.to(self.device)
            features_out = features_out.index_copy(0, at, made.features.to(features_out))
            pointers = pointers.index_copy(0, at, made.pointers.to(pointers))
            logits = logits.index_copy(0, at, seen)
        return MemoryEntries(features=features_out, pointers=pointers), logits

    def _group(
        self, maps: dict[str, Tensor], prompts: PromptBatch, rows: Tensor, count: int
    ) -> tuple[MemoryEntries, Tensor]:
        if count == 0:
            masks = prompts.masks.masked_fill(prompts.negatives[:, :, None, None], 0)
            return self.core.remember_masks(maps, masks.flatten(0, 1)[rows].to(self.device))
        points = prompts.points.flatten(0, 1)[rows, :count].to(self.device)
        labels = prompts.labels.flatten(0, 1)[rows, :count].to(self.device)
        return self.core.remember_points(maps, points, labels)

    def _blank(self, features: Features, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        f2, quarter = features.maps["f2"], self.side // 4
        return (f2.new_zeros(rows, self.core.sam.mem_dim, *f2.shape[-2:]), f2.new_zeros(rows, f2.shape[1]),
                torch.zeros(rows, quarter, quarter, device=f2.device))


def append(memory: Memory, entries: MemoryEntries) -> Memory:
    """Add one entry, the target just predicted, to every set of a memory without padding."""
    new = {"features": entries.features, "pointers": entries.pointers}
    return Memory(tensors={k: torch.cat([v, new[k][:, None].to(v)], dim=1) for k, v in memory.tensors.items()},
                  counts=memory.counts + 1)
