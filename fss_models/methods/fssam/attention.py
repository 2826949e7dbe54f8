"""Support-Calibrated Memory Attention: SAM 2's memory attention with a bias on the pseudo query memory.

Letters: P pairs, S distinct support sets, K shots, n = g * g tokens a memory, C width, Cm memory width, r pointer
tokens. A layer's keys are the blocks [support 1 .. support K, query memory] of n tokens each, then the pointers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fss_models.methods.fssam.ops import cosine, pool, stretch

_STRENGTH = 10.0  # the bias lies in [-10, 0]


@dataclass(frozen=True, kw_only=True)
class PairMemory:
    """The memories that P queries attend to.

    supports   [S, K, n, Cm] memories, stored once for each set; `rows` [P] is the set that a pair uses
    query      [P, n, Cm] the refined pseudo memory; None without one
    pointers   [P, r, Cm] tokens, those of the supports first
    position   [n, Cm] code that all blocks share; pointers have none
    prototypes [P, L, T, C] prototypes of the keys, in each of the L layers, of the T blocks taken for supports;
               without them the attention is not calibrated
    """

    supports: Tensor
    rows: Tensor
    query: Tensor | None
    pointers: Tensor
    position: Tensor
    prototypes: Tensor | None


@dataclass(frozen=True, kw_only=True)
class AttentionOutput:
    """Result of one calibrated cross attention: bias [P, n, n] (the paper's B), likeness [P, n] (h).

    scores [P, n, tokens] before the bias; weights the same after softmax; output [P, n, C]
    """

    likeness: Tensor
    scores: Tensor
    bias: Tensor
    weights: Tensor
    output: Tensor


def attend(attention: Any, start: Tensor, memory: PairMemory) -> Tensor:
    """Run SAM 2's `MemoryAttention` on query tokens [P, n, C] -> [P, n, C]."""
    if memory.prototypes is None:
        return _plain(attention, start, memory)
    tokens = start
    for layer, prototypes in zip(attention.layers, memory.prototypes.unbind(dim=1), strict=True):
        tokens = layer._forward_sa(tokens, None)
        found = _cross(layer.cross_attn_image, layer.norm2(tokens), memory, prototypes)
        tokens = tokens + layer.dropout2(found.output)
        hidden = layer.dropout(layer.activation(layer.linear1(layer.norm3(tokens))))
        tokens = tokens + layer.dropout3(layer.linear2(hidden))
    out: Tensor = attention.norm(tokens)
    return out


def _plain(attention: Any, start: Tensor, memory: PairMemory) -> Tensor:
    """Run SAM 2's own attention, without calibration, over the same tokens."""
    blocks = memory.supports[memory.rows]
    if memory.query is not None:
        blocks = torch.cat([blocks, memory.query[:, None]], dim=1)
    places = memory.position.expand_as(blocks).flatten(1, 2)
    values = torch.cat([blocks.flatten(1, 2), memory.pointers], dim=1)
    places = torch.cat([places, torch.zeros_like(memory.pointers)], dim=1)
    tokens = start
    for layer in attention.layers:
        tokens = layer(tgt=tokens, memory=values, pos=places, query_pos=None,
                       num_k_exclude_rope=memory.pointers.shape[1])
    out: Tensor = attention.norm(tokens)
    return out


def _cross(attn: Any, tokens: Tensor, memory: PairMemory, prototypes: Tensor) -> AttentionOutput:
    assert memory.query is not None
    support = memory_keys(attn, memory.supports + memory.position)[memory.rows]  # each set projected once
    query = memory_keys(attn, memory.query + memory.position)
    values = attn.v_proj(memory.supports)[memory.rows], attn.v_proj(memory.query)
    return calibrated_attention(
        attn, rotate(attn, attn.q_proj(tokens)), torch.cat([support, query[:, None]], dim=1),
        torch.cat([values[0], values[1][:, None]], dim=1),
        attn.k_proj(memory.pointers), attn.v_proj(memory.pointers), prototypes)


def calibrated_attention(
    attn: Any, q: Tensor, keys: Tensor, values: Tensor, pointer_keys: Tensor, pointer_values: Tensor,
    prototypes: Tensor,
) -> AttentionOutput:
    """Cross attention of rotated queries q [P, n, C] over K + 1 blocks and pointers.

    keys (rotated) and values [P, K + 1, n, C]; pointer keys and values [P, r, C]; prototypes [P, T, C]. The first T
    blocks are averaged token by token; block T is taken for the query memory and gets the bias. T = K as intended;
    T = 1 with K > 1 is the released code, where block 1 is the second support.
    """
    t, (p, n) = prototypes.shape[1], q.shape[:2]
    likeness = stretch(_likeness(prototypes, keys[:, t])).mean(dim=1)
    keys, values = (
        torch.cat([blocks[:, :t].mean(dim=1), blocks[:, t], blocks[:, t + 1:].flatten(1, 2), rest], dim=1)
        for blocks, rest in ((keys, pointer_keys), (values, pointer_values)))
    scores = q @ keys.transpose(1, 2) / math.sqrt(q.shape[-1])
    high = stretch(scores[:, :, n:2 * n])
    bias = (_STRENGTH * (high + likeness[:, None] - 1).clamp(max=0)).detach()
    none = bias.new_zeros(p, n, 1)
    shift = torch.cat([none.expand(-1, -1, n), bias, none.expand(-1, -1, keys.shape[1] - 2 * n)], dim=2)
    weights = (scores + shift).softmax(dim=-1)
    mixed = F.dropout(weights, attn.dropout_p, attn.training) @ values
    return AttentionOutput(likeness=likeness, scores=scores, bias=bias, weights=weights, output=attn.out_proj(mixed))


def _likeness(prototypes: Tensor, keys: Tensor) -> Tensor:
    """Cosines [P, T, n] between prototypes [P, T, C] and keys [P, n, C]."""
    return cosine(prototypes, keys.transpose(1, 2)[:, None, :, None]).squeeze(-2)


def memory_keys(attn: Any, tokens: Tensor) -> Tensor:
    """Rotated keys [..., n, C] of memory plus position [..., n, Cm]."""
    return rotate(attn, attn.k_proj(tokens))


def rotate(attn: Any, tokens: Tensor) -> Tensor:
    """Apply the rotary position encoding of the g x g grid to [..., n, C], in float32 as SAM 2 does."""
    side = math.isqrt(tokens.shape[-2])
    table = attn.compute_cis(end_x=side, end_y=side).to(tokens.device)
    pairs = torch.view_as_complex(tokens.float().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * table).flatten(-2).type_as(tokens)


@torch.no_grad()
def key_prototypes(attention: Any, memories: Tensor, position: Tensor, masks: Tensor) -> Tensor:
    """Prototypes of the object's keys in each layer: memories [E, Cm, g, g], masks [E, R, R] -> [E, L, C].

    The mask is resized by nearest neighbour, and the keys are the rotated ones: both as in the released code.
    """
    side = memories.shape[-1]
    small = F.interpolate(masks[:, None], size=(side, side), mode="nearest")[:, 0]
    tokens = memories.flatten(2).transpose(1, 2) + position
    keys = [memory_keys(layer.cross_attn_image, tokens) for layer in attention.layers]
    return torch.stack([pool(k.transpose(1, 2).unflatten(2, (side, side)), small) for k in keys], dim=1)
