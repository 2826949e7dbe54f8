"""Matcher (ICLR 2024): training-free segmentation by matched patches, SAM's masks for them, and scores of the masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fss_models.clip import Features, Images, Memory, Prediction, PromptBatch, PromptKind
from fss_models.errors import FssError
from fss_models.methods.matcher.config import MatcherConfig, at_preset
from fss_models.methods.matcher.matching import PatchMatches, base_points, draw_samples, match_patches, patch_points
from fss_models.methods.matcher.proposals import (
    Proposals,
    boxes_of,
    grid_points,
    make_proposals,
    pack_masks,
    suppress,
    unpack_masks,
)
from fss_models.methods.matcher.scoring import ProposalScores, choose_proposals, filter_proposals, score_proposals
from fss_models.point_prompts.build import PointParts, build_point_parts
from fss_models.point_prompts.decoder import DecodedPrompts, PromptDecoder
from fss_models.point_prompts.segmenter import PointPromptedSegmenter, with_square
from fss_models.prototype_prompts.sams import DECODER_MAPS, Maps
from fss_models.registry import register_method


@dataclass(frozen=True, kw_only=True)
class MatcherAnalysis:
    """Everything that `segment` computes for one pair on the way.

    points [n, 2] (x, y) the matched ones;  base [m, 2] those that prompts are drawn from;  box [4]
    off [q, 2]  points off the object that go with every prompt
    samples   prompts by growing size, each [draws, r, 2]
    left      rows of `proposals` that pass the filters;  chosen: rows of `left` that are merged
    """

    matches: PatchMatches
    points: Tensor
    base: Tensor
    box: Tensor
    off: Tensor
    samples: list[Tensor]
    proposals: Proposals
    scores: ProposalScores
    left: Tensor
    chosen: Tensor


@register_method("matcher", config=MatcherConfig)
class Matcher(PointPromptedSegmenter):
    """Matcher; `encode` computes patches, SAM's embedding and the grid's proposals, once a photo."""

    presets = ("debug", "official")
    config: MatcherConfig

    def __init__(
        self, *, preset: str, config: MatcherConfig, weights: str | None = None, parts: PointParts | None = None
    ) -> None:
        """`parts` are the frozen parts of any size, holding their values; without them the preset's are built."""
        parts = parts or build_point_parts(
            preset, source=config.features, cell_side=config.side, antialias=False, cell_weights=config.dino_weights,
            weights=weights, side=0 if preset == "debug" else config.side)
        super().__init__(preset=preset, config=config, parts=parts)
        self.use = at_preset(config, preset)

    def encode(self, images: Images) -> Features:
        """Maps "cells" [N, C, g, g] of unit length, "sam", and with `dense` the grid's proposals.

        These are "dense_masks" [N, M, R, ceil(R / 8)] as bits, "dense_ious" and "dense_stabilities" [N, M], with zeros
        beyond a photo's "dense_count" [N].
        """
        pixels = images.pixels.to(self.device)
        looked = self.sam.look(self._enlarged(pixels))
        maps = {"cells": F.normalize(self.cells(pixels, looked), dim=1), **self.sam.embed(looked)}
        if self.use.dense:
            found = [self._dense({k: v[n : n + 1] for k, v in maps.items() if k != "cells"})
                     for n in range(len(pixels))]
            most = max(len(f.ious) for f in found)
            maps["dense_masks"] = torch.stack([_padded(pack_masks(f.masks), most) for f in found])
            maps["dense_ious"] = torch.stack([_padded(f.ious, most) for f in found])
            maps["dense_stabilities"] = torch.stack([_padded(f.stabilities, most) for f in found])
            maps["dense_count"] = torch.tensor([len(f.ious) for f in found], device=pixels.device)
        return Features(maps=maps, sizes=images.sizes)

    def encode_supports(self, images: Images) -> Features:
        """The map "cells" of `encode` alone: there are no proposals in supports."""
        pixels = images.pixels.to(self.device)
        looked = self.sam.look(self._enlarged(pixels)) if self.cells.looks else {}
        return Features(maps={"cells": F.normalize(self.cells(pixels, looked), dim=1)}, sizes=images.sizes)

    @property
    def supports_apart(self) -> bool:
        """Also where a grid of prompts is decoded in queries, which costs more than all else."""
        return self.use.dense or super().supports_apart

    def _enlarged(self, pixels: Tensor) -> Tensor:
        """Pixels at SAM's side; the released code does it in 8 bits, with PIL."""
        if pixels.shape[-1] == self.sam.side:
            return pixels
        mean, std = (torch.tensor(v, device=pixels.device).view(1, 3, 1, 1)
                     for v in (self.preprocessor.mean, self.preprocessor.std))
        bytes_ = ((pixels * std + mean) * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
        size = (self.sam.side, self.sam.side)
        large = np.stack([np.asarray(Image.fromarray(b).resize(size, Image.Resampling.BILINEAR)) for b in bytes_])
        return (torch.from_numpy(large).to(pixels).permute(0, 3, 1, 2) / 255 - mean) / std

    def _dense(self, maps: Maps) -> Proposals:
        """The grid's proposals of one photo."""
        points = grid_points(self.use.points_per_side, self.sam.side).to(self.device)
        decoder, photo = PromptDecoder(self.sam, maps), torch.zeros(len(points), dtype=torch.int64, device=self.device)
        found = []
        for some in decoder.chunks(photo, self.use.decoder_batch):
            made = self._decode(decoder, photo[some], points[some, None], None, several=False)
            sure = (made.ious[:, 0] > self.use.dense_iou).nonzero()[:, 0]
            kept = self._proposals(decoder.masks(made, sure)[:, 0], made.ious[sure, 0])
            found.append(kept.take(kept.stabilities >= self.use.dense_stability))
        return Proposals.join(found)

    def _proposals(self, low: Tensor, ious: Tensor) -> Proposals:
        return make_proposals(low, ious, sam_side=self.sam.side, side=self.side)

    def _decode(
        self, decoder: PromptDecoder, photo: Tensor, points: Tensor, boxes: Tensor | None, *, several: bool,
        off: int = 0
    ) -> DecodedPrompts:
        """Decode prompts of points [E, r, 2] in pixels of SAM's square on photos `photo` [E]; no mask is drawn yet.

        The last `off` points of each row are off the object.
        """
        labels = torch.ones(points.shape[:2], dtype=torch.int32, device=points.device)
        labels[:, points.shape[1] - off:] = 0
        return decoder.decode(photo, self.sam.point_prompts(points, boxes, labels), several=several)

    def memorise(self, features: Features, prompts: PromptBatch) -> Memory:
        """Tensors cells [S, K, N, C] of unit length, and object [S, K, N] bool: the patches with a pixel of the mask.

        Of a negative reference none is the object's, and `cells` has zeros where it is not marked. Tensor shots [S]
        counts the others. Raises `FssError` for a prompt without a mask.
        """
        if bool(((prompts.kind != PromptKind.MASK) & (prompts.kind != PromptKind.PAD)).any()):
            raise FssError("method 'matcher' takes mask prompts only", hint="give the support as a mask")
        cells = features.maps["cells"][prompts.image.to(self.device)]
        masks = with_square(prompts.masks.to(self.device, torch.float32), self.use.empty_square)
        patch = self.side // cells.shape[-1]
        shown, negative = prompts.shown.to(self.device), prompts.negatives.to(self.device)
        marked = (F.max_pool2d(masks, patch) > 0).flatten(2)
        used = shown[..., None] | (negative[..., None] & marked)
        return Memory(tensors={"cells": cells.flatten(3).transpose(2, 3) * used[..., None],
                               "object": marked & shown[..., None], "shots": shown.sum(dim=1)}, counts=prompts.counts)

    def segment(self, memory: Memory, features: Features, pairs: Tensor) -> Prediction:
        """Logits [P, R, R], 1 on the merged masks and -1 elsewhere; the score is the best proposal's."""
        logits, scores = [], []
        for seen in self.analyse(memory, features, pairs):
            merged = seen.proposals.masks[seen.left[seen.chosen]].any(dim=0)
            logits.append(merged.float() * 2 - 1)
            scores.append(seen.scores.total[seen.left].amax() if len(seen.left) else logits[-1].new_zeros(()))
        return Prediction(logits=torch.stack(logits), scores=torch.stack(scores).clamp(0, 1))

    def analyse(self, memory: Memory, features: Features, pairs: Tensor) -> list[MatcherAnalysis]:
        """`segment` with everything that was computed on the way, pair by pair.

        The assignments, the distances and the suppression are sequential and run on the CPU; SAM decodes the prompts of
        all pairs together, those with equally many points in one batch.
        """
        sets, image = pairs.to(self.device).unbind(1)
        target = features.maps["cells"][image].flatten(2)
        similarity = [(memory.tensors["cells"][s, :k].flatten(0, 1) @ t).cpu().numpy() for s, k, t in
                      zip(sets, memory.counts[sets.cpu()].tolist(), target, strict=True)]
        own = [memory.tensors["object"][s, :k].flatten().nonzero()[:, 0].cpu().numpy()
               for s, k in zip(sets, memory.counts[sets.cpu()].tolist(), strict=True)]
        grid, shots = features.maps["cells"].shape[-1], memory.tensors["shots"][sets].tolist()
        matches = [match_patches(s, o, crowded=self.use.crowded, negatives=len(s) - k * grid ** 2)
                   for s, o, k in zip(similarity, own, shots, strict=True)]
        points = [patch_points(m.target, grid, self.side // grid) for m in matches]
        off = [patch_points(m.negative[:self.use.negative_points], grid, self.side // grid) for m in matches]
        bases, samples = self._prompts(points)
        boxes = torch.stack([torch.cat([p.amin(dim=0), p.amax(dim=0)]) for p in points])
        prompted = self._prompted(features, image, samples, boxes, off)
        found = []
        for p, of_prompts in enumerate(prompted):
            proposals = self._thinned(features, int(image[p]), of_prompts)
            scores = score_proposals(proposals.masks, points[p].to(self.device), similarity[p], own[p], self.use, grid)
            left = filter_proposals(scores, self.use)
            chosen = choose_proposals(scores.total[left], self.use, shots[p])
            found.append(MatcherAnalysis(matches=matches[p], points=points[p], base=bases[p], box=boxes[p],
                                         off=off[p], samples=samples[p], proposals=proposals, scores=scores, left=left,
                                         chosen=chosen))
        return found

    def _prompts(self, points: list[Tensor]) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Points that prompts are drawn from, and the prompts by growing size, of each pair."""
        bases = [base_points(p, self.use) for p in points]
        return bases, [draw_samples(b, self.use) for b in bases]

    def _prompted(
        self, features: Features, image: Tensor, samples: list[list[Tensor]], boxes: Tensor, off: list[Tensor]
    ) -> list[Proposals]:
        """The prompts' proposals of each pair, after the filters by SAM's estimates, by growing size of the prompt.

        The points `off` [q, 2] of a pair go with each of its prompts.
        """
        decoder = PromptDecoder(self.sam, {k: v for k, v in features.maps.items() if k in DECODER_MAPS})
        scale = self.sam.side / self.side
        found: list[list[Proposals]] = [[] for _ in samples]
        for size, extra in sorted({(s.shape[1], len(off[p])) for p, one in enumerate(samples) for s in one}):
            some = [(p, torch.cat([s, off[p].expand(len(s), -1, -1)], dim=1)) for p, one in enumerate(samples)
                    for s in one if (s.shape[1], len(off[p])) == (size, extra)]
            pair = torch.cat([torch.full((len(s),), p) for p, s in some])
            given = torch.cat([s for _, s in some])
            distinct, back = torch.cat([pair[:, None], given.flatten(1)], dim=1).unique(dim=0, return_inverse=True)
            who, at = distinct[:, 0], distinct[:, 1:].unflatten(1, (-1, 2)).float() * scale
            every, prompt = self._drawn(decoder, image[who.to(image.device)], at.to(self.device),
                                        boxes[who].float().to(self.device) * scale, extra)
            for p, _ in some:
                rows = [(prompt == b).nonzero()[:, 0] for b in back[pair == p].to(prompt.device)]
                found[p].append(every.take(torch.cat(rows)))
        return [Proposals.join(parts) for parts in found]

    def _drawn(
        self, decoder: PromptDecoder, image: Tensor, points: Tensor, boxes: Tensor, off: int = 0
    ) -> tuple[Proposals, Tensor]:
        """Proposals of prompts [E, r, 2] on photos `image` [E], with the prompt of each; masks are drawn of prompts
        that pass the filter by predicted IoU alone.
        """
        use, made, numbers = self.use, [], []
        for some in decoder.chunks(image, use.decoder_batch):
            seen = self._decode(decoder, image[some], points[some], boxes[some] if use.use_box else None, off=off,
                                several=use.masks_per_prompt == 3)
            kept = seen.ious > (use.iou_filter if use.iou_filter > 0 else -torch.inf)
            rows = kept.any(dim=1).nonzero()[:, 0]
            low, number = decoder.masks(seen, rows)[kept[rows]], kept.nonzero()[:, 0]
            one = self._proposals(low, seen.ious[kept])
            if use.stability_filter > 0:
                stable = one.stabilities >= use.stability_filter
                one, number = one.take(stable), number[stable]
            made.append(one)
            numbers.append(some[number])
        return Proposals.join(made), torch.cat(numbers)

    def _thinned(self, features: Features, image: int, prompted: Proposals) -> Proposals:
        """All proposals of a pair, by falling predicted IoU, without those whose box a better one covers."""
        parts = [prompted]
        if self.use.dense:
            count = int(features.maps["dense_count"][image])
            masks, ious, stabilities = (features.maps[f"dense_{k}"][image, :count] for k in
                                        ("masks", "ious", "stabilities"))
            parts.insert(0, Proposals(masks=unpack_masks(masks, self.side), ious=ious, stabilities=stabilities))
        every = Proposals.join(parts)
        return every.take(suppress(boxes_of(every.masks), every.ious, self.use.nms))


def _padded(values: Tensor, length: int) -> Tensor:
    """Values [n, ...] with rows of zeros up to `length`."""
    return torch.cat([values, values.new_zeros(length - len(values), *values.shape[1:])])

