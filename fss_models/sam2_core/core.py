"""SAM 2's own parts, driven in batches: no loop over images, support sets or pairs.

Only `SAM2Base`'s sub-modules are used, none of its frame-by-frame state. Letters as in `fss_models.clip`; C is the
width of the stride-16 map, Cm that of a memory, g = R / 16 the grid side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from sam2.modeling.sam2_utils import get_1d_sine_pe
from torch import Tensor, nn

MASK_SCALE, MASK_BIAS = 20.0, -10.0  # a mask prompt as logits: +10 inside, -10 outside
Maps = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class DecodedMasks:
    """The mask decoder's output for E images.

    logits [E, M, R/4, R/4], ious [E, M], tokens [E, M or 1, C]; M = 3 candidates or 1
    """

    logits: Tensor
    ious: Tensor
    tokens: Tensor

    def best(self) -> tuple[Tensor, Tensor, Tensor]:
        """The candidate with the highest predicted IoU: logits [E, R/4, R/4], iou [E], token [E, C]."""
        rows = torch.arange(len(self.ious), device=self.ious.device)
        pick = self.ious.argmax(dim=1)
        token = self.tokens[rows, pick if self.tokens.shape[1] > 1 else 0]
        return self.logits[rows, pick], self.ious[rows, pick], token


@dataclass(frozen=True, kw_only=True)
class MemoryEntries:
    """E memory entries: features [E, Cm, g, g] and object pointers [E, C]."""

    features: Tensor
    pointers: Tensor


@dataclass(frozen=True, kw_only=True)
class MemoryRules:
    """Rules for how references enter memory; the defaults are the released SANSA code's.

    exact_masks       a mask prompt enters memory unchanged; else it is resampled to R/4 and back, which softens it
    all_conditioning  every reference gets the conditioning frame's temporal code, so that their order does not
                      matter and none is dropped; else only the first gets it, and the others count as later frames
    """

    exact_masks: bool = False
    all_conditioning: bool = False


class Sam2Core(nn.Module):
    """A `SAM2Base` whose encode, memorise, attend and decode steps take whole batches."""

    def __init__(self, sam: Any, rules: MemoryRules | None = None) -> None:
        super().__init__()
        self.sam = sam
        self.rules = rules or MemoryRules()

    @property
    def side(self) -> int:
        """R, the input side in pixels."""
        return int(self.sam.image_size)

    def encode(self, pixels: Tensor) -> Maps:
        """Encode [N, 3, R, R] to maps f0 [N, C/8, R/4, R/4], f1 [N, C/4, R/8, R/8], f2 [N, C, g, g]."""
        levels = self.sam.forward_image(pixels)["backbone_fpn"]
        return dict(zip(("f0", "f1", "f2"), levels, strict=True))

    def decode(
        self, maps: Maps, embedding: Tensor, *, points: Tensor | None = None, labels: Tensor | None = None,
        mask: Tensor | None = None, candidates: bool = False,
    ) -> DecodedMasks:
        """SAM's prompt encoder and mask decoder on `embedding` [E, C, g, g].

        points [E, P, 2] and labels [E, P] in pixels of the square (none: one padding point); mask [E, 1, R/4, R/4].
        """
        if points is None or labels is None:
            points = embedding.new_zeros(len(embedding), 1, 2)
            labels = torch.full((len(embedding), 1), -1, dtype=torch.int32, device=embedding.device)
        sparse, dense = self.sam.sam_prompt_encoder(points=(points, labels), boxes=None, masks=mask)
        logits, ious, tokens, _ = self.sam.sam_mask_decoder(
            image_embeddings=embedding, image_pe=self.sam.sam_prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse, dense_prompt_embeddings=dense, multimask_output=candidates,
            repeat_image=False, high_res_features=[maps["f0"], maps["f1"]],
        )
        return DecodedMasks(logits=logits.float(), ious=ious, tokens=tokens)

    def decode_points(self, maps: Maps, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [E, R/4, R/4] and predicted IoU [E] of the objects at points [E, P, 2] in images without memory."""
        plain = maps["f2"] + self.sam.no_mem_embed.view(1, -1, 1, 1)
        return self.decode(maps, plain, points=points, labels=labels, candidates=True).best()[:2]

    def remember_masks(self, maps: Maps, masks: Tensor) -> tuple[MemoryEntries, Tensor]:
        """Entries and predicted logits of references marked by masks [E, R, R] in {0, 1}."""
        mask = (masks > 0).float()[:, None]
        decoded = self.decode(maps, maps["f2"], mask=self.sam.mask_downsample(mask))
        return self.mask_entries(maps, masks, decoded.tokens[:, 0]), decoded.logits[:, 0]

    def mask_entries(self, maps: Maps, masks: Tensor, token: Tensor) -> MemoryEntries:
        """Entries of references with given masks [E, R, R] in {0, 1} and the decoder's output tokens [E, C]."""
        logits, quarter = (masks > 0).float()[:, None] * MASK_SCALE + MASK_BIAS, self.side // 4
        if not self.rules.exact_masks:
            logits = F.interpolate(logits, size=(quarter, quarter), mode="bilinear", align_corners=False,
                                   antialias=True)
        return self._entries(maps["f2"], logits[:, 0], token)

    def remember_points(self, maps: Maps, points: Tensor, labels: Tensor) -> tuple[MemoryEntries, Tensor]:
        """Entries and predicted logits of references marked by points or boxes."""
        plain = maps["f2"] + self.sam.no_mem_embed.view(1, -1, 1, 1)
        decoded = self.decode(maps, plain, points=points, labels=labels)
        return self._entries(maps["f2"], decoded.logits[:, 0], decoded.tokens[:, 0]), decoded.logits[:, 0]

    def remember_prediction(self, maps: Maps, logits: Tensor, token: Tensor) -> MemoryEntries:
        """Entries of predicted targets [E, R/4, R/4] as pseudo-references, with gradients."""
        return self._entries(maps["f2"], logits, token)

    def _entries(self, f2: Tensor, logits: Tensor, token: Tensor) -> MemoryEntries:
        """Memory entries of `logits` [E, q, q]; they are resized from any side q to R before the memory encoder."""
        full = F.interpolate(logits[:, None], size=(self.side, self.side), mode="bilinear", align_corners=False)
        scale, bias = self.sam.sigmoid_scale_for_mem_enc, self.sam.sigmoid_bias_for_mem_enc
        encoded = self.sam.memory_encoder(f2, full.sigmoid() * scale + bias, skip_mask_sigmoid=True)
        return MemoryEntries(features=encoded["vision_features"], pointers=self.sam.obj_ptr_proj(token))

    def make_trainable_again(self) -> None:
        """Replace the rotary tables, which the package caches at their first use, by plain copies.

        If the first use was under `torch.inference_mode` (an evaluation before training), no gradient could pass them.
        """
        for layer in self.sam.memory_attention.layers:
            for attn in (layer.self_attn, layer.cross_attn_image):
                if attn.freqs_cis.is_inference():
                    attn.freqs_cis = attn.freqs_cis.clone()

    def attend(self, f2: Tensor, features: Tensor, pointers: Tensor, references: int | None = None) -> Tensor:
        """Memory attention of E images f2 [E, C, g, g] over `t` entries each.

        features [E, t, Cm, g, g], pointers [E, t, C], oldest first; the first `references` of them (default: all)
        are prompted. Entry 0 is the conditioning frame; of more than `num_maskmem` entries only entry 0 and the
        latest are read, as SAM 2 does. With `MemoryRules.all_conditioning` every reference is a conditioning frame, and
        all are read.
        """
        t = features.shape[1]
        if torch.is_grad_enabled():
            self.make_trainable_again()
        conditioning = (t if references is None else references) if self.rules.all_conditioning else 1
        memory, memory_pos = self._spatial_tokens(features, conditioning)
        tokens, token_pos = self._pointer_tokens(pointers, conditioning)
        out = self.sam.memory_attention(
            curr=_sequence(f2), curr_pos=_sequence(self._grid(f2)).expand(-1, len(f2), -1),
            memory=torch.cat([memory, tokens]), memory_pos=torch.cat([memory_pos, token_pos]),
            num_obj_ptr_tokens=len(tokens),
        )
        attended: Tensor = out.permute(1, 2, 0).reshape(f2.shape)
        return attended

    def _spatial_tokens(self, features: Tensor, conditioning: int) -> tuple[Tensor, Tensor]:
        """Tokens and positions, both [t' * g * g, E, Cm], of memories [E, t, Cm, g, g]."""
        picked = spatial_order(features.shape[1], self.sam.num_maskmem, conditioning)
        codes = self.sam.maskmem_tpos_enc[[code for _, code in picked]].flatten(1)  # [t', Cm]
        place = self.sam.memory_encoder.position_encoding(features[:1, 0]).to(features)[0]  # [Cm, g, g]
        chosen = features[:, [entry for entry, _ in picked]]
        tokens = chosen.flatten(3).permute(1, 3, 0, 2).flatten(0, 1)
        position = place.flatten(1).t()[None] + codes[:, None]  # [t', g * g, Cm]
        return tokens, position.flatten(0, 1)[:, None].expand_as(tokens)

    def _pointer_tokens(self, pointers: Tensor, conditioning: int) -> tuple[Tensor, Tensor]:
        """Tokens and positions, both [t' * C / Cm, E, Cm], of pointers [E, t, C]; each pointer is split into chunks."""
        t, width = pointers.shape[1], self.sam.mem_dim
        order = pointer_order(t, self.sam.max_obj_ptrs_in_encoder, conditioning)
        split = pointers[:, order].unflatten(2, (-1, width))  # [E, t', C / Cm, Cm]
        tokens = split.permute(1, 2, 0, 3).flatten(0, 1)
        if not self.sam.add_tpos_enc_to_obj_ptrs:  # SAM 2.0
            return tokens, torch.zeros_like(tokens)
        codes = self._pointer_codes([t - i for i in order], t, pointers)  # [t', Cm]
        return tokens, codes.repeat_interleave(split.shape[2], dim=0)[:, None].expand_as(tokens)

    def _pointer_codes(self, distances: list[int], t: int, like: Tensor) -> Tensor:
        """SAM 2.1's temporal code [t', Cm] of pointers at `distances` from the target, in frames of `t`."""
        projected = self.sam.proj_tpos_enc_in_obj_ptrs
        width = like.shape[2] if projected else self.sam.mem_dim
        limit = min(t + 1, self.sam.max_obj_ptrs_in_encoder) - 1
        code = get_1d_sine_pe(torch.tensor(distances, device=like.device) / limit, dim=width)
        coded: Tensor = self.sam.obj_ptr_tpos_proj(code.to(like))
        return coded

    def _grid(self, f2: Tensor) -> Tensor:
        place: Tensor = self.sam.image_encoder.neck.position_encoding(f2[:1]).to(f2)
        return place


def _sequence(maps: Tensor) -> Tensor:
    """Flatten maps [E, C, h, w] to [h * w, E, C], the order of SAM 2's attention."""
    return maps.flatten(2).permute(2, 0, 1)


def spatial_order(t: int, slots: int, conditioning: int = 1) -> list[tuple[int, int]]:
    """The entries, of `t`, that the target at position t reads, with their temporal codes, in SAM 2's order.

    The first `conditioning` are always read, with the last code; of the others the latest `slots` - 1 frames.
    """
    recent = [i for i in range(t - slots + 1, t) if i >= conditioning]
    return [*((i, slots - 1) for i in range(conditioning)), *((i, t - i - 1) for i in recent)]


def pointer_order(t: int, limit: int, conditioning: int = 1) -> list[int]:
    """The entries whose pointers the target at position t reads: conditioning ones, then the others, latest first."""
    latest = range(t - 1, max(t - limit, 0), -1)
    return [*range(conditioning), *(i for i in latest if i >= conditioning)]


def take(maps: Maps, index: Tensor | Sequence[int]) -> Maps:
    """The rows `index` of every map."""
    return {name: value[index] for name, value in maps.items()}
