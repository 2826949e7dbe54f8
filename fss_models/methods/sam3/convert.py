"""Names and layouts of tensors in Meta's `sam3.pt`, for every tensor that transformers' `Sam3Model` wants.

Names were read in the public source of Meta's package and in Geti's loader; the file itself is gated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fss_models.errors import FssError

PREFIX, TRACKER = "detector.", "tracker."
_Rename = tuple[str, str]

_TRUNK: tuple[_Rename, ...] = (
    (r"^layers\.", "blocks."), (r"layer_norm(\d)", r"norm\1"), (r"attention\.o_proj", "attn.proj"),
    (r"attention\.[qkv]_proj", "attn.qkv"), (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"), (r"^layer_norm\.", "ln_pre."))
_NECK: tuple[_Rename, ...] = (
    (r"^0\.scale_layers\.0", "0.dconv_2x2_0"), (r"^0\.scale_layers\.2", "0.dconv_2x2_1"),
    (r"scale_layers\.0", "dconv_2x2"), ("proj1", "conv_1x1"), ("proj2", "conv_3x3"))
_WORDS: tuple[_Rename, ...] = (
    (r"^embeddings\.token_embedding", "token_embedding"),
    (r"^embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^encoder\.layers", "transformer.resblocks"), (r"self_attn\.[qkv]_proj\.", "attn.in_proj_"),
    (r"self_attn", "attn"), (r"layer_norm(\d)", r"ln_\1"), (r"mlp\.fc1", "mlp.c_fc"), (r"mlp\.fc2", "mlp.c_proj"),
    (r"^final_layer_norm", "ln_final"))
_ATTENTION: tuple[_Rename, ...] = ((r"\.[qkv]_proj\.", ".in_proj_"), (r"\.o_proj\.", ".out_proj."),
                                   (r"mlp\.fc(\d)", r"linear\1"), (r"layer_norm(\d)", r"norm\1"))
_COUNTED: tuple[_Rename, ...] = (
    (r"\.layer1\.", ".layers.0."), (r"\.layer2\.", ".layers.1."), (r"\.layer3\.", ".layers.2."))
_GEOMETRY: tuple[_Rename, ...] = (
    *_ATTENTION, (r"^layers\.", "encode."), (r"\bcross_attn\b", "cross_attn_image"),
    (r"^vision_layer_norm", "img_pre_norm"), (r"^prompt_layer_norm", "norm"), (r"^output_layer_norm", "encode_norm"))
_DECODER: tuple[_Rename, ...] = (
    *_ATTENTION, *_COUNTED, (r"vision_cross_attn_layer_norm", "norm1"), (r"text_cross_attn_layer_norm", "catext_norm"),
    (r"self_attn_layer_norm", "norm2"), (r"mlp_layer_norm", "norm3"), (r"text_cross_attn", "ca_text"),
    (r"vision_cross_attn", "cross_attn"), (r"^box_head", "bbox_embed"), (r"^box_rpb", "boxRPB"),
    (r"^output_layer_norm", "norm"), (r"^presence_head", "presence_token_head"),
    (r"^presence_layer_norm", "presence_token_out_norm"))
_SCORER: tuple[_Rename, ...] = (*_COUNTED, (r"^text_mlp_out_norm", "prompt_mlp.out_norm"),
                                (r"^text_mlp", "prompt_mlp"), (r"^text_proj", "prompt_proj"),
                                (r"^query_proj", "hs_proj"))
_HEAD: tuple[_Rename, ...] = (
    *_ATTENTION, (r"^mask_embedder", "mask_predictor.mask_embed"), (r"^instance_projection", "instance_seg_head"),
    (r"^semantic_projection", "semantic_seg_head"), (r"^prompt_cross_attn_norm", "cross_attn_norm"),
    (r"^prompt_cross_attn", "cross_attend_prompt"))

#: the beginning of our names -> the beginning of Meta's, and what differs in the rest, in this order
_SECTIONS: tuple[tuple[str, str, tuple[_Rename, ...]], ...] = (
    ("vision_encoder.backbone.", "backbone.vision_backbone.trunk.", _TRUNK),
    ("vision_encoder.neck.fpn_layers.", "backbone.vision_backbone.convs.", _NECK),
    ("text_encoder.text_model.", "backbone.language_backbone.encoder.", _WORDS),
    ("text_encoder.text_projection.weight", "backbone.language_backbone.encoder.text_projection", ()),
    ("text_projection.", "backbone.language_backbone.resizer.", ()),
    ("geometry_encoder.", "geometry_encoder.", _GEOMETRY),
    ("detr_encoder.", "transformer.encoder.", (*_ATTENTION, (r"\bcross_attn\b", "cross_attn_image"))),
    ("detr_decoder.", "transformer.decoder.", _DECODER),
    ("dot_product_scoring.", "dot_prod_scoring.", _SCORER),
    ("mask_decoder.", "segmentation_head.", _HEAD))


def meta_name(key: str) -> str:
    """The name in `sam3.pt`, without "detector.", of the tensor that holds transformers' tensor `key`."""
    ours, theirs, renames = next(s for s in _SECTIONS if key.startswith(s[0]))
    rest = key.removeprefix(ours)
    for pattern, replacement in renames:
        rest = re.sub(pattern, replacement, rest)
    return theirs + rest


def from_meta(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, where: str = "") -> dict[str, Tensor]:
    """The tensors of `wanted` (transformers' names) from those of `sam3.pt`. Raises `FssError` for one it lacks.

    q, k and v are the thirds of one tensor there, the position table has a row for a class token that no picture has,
    and the text projection is transposed. Rotary tables and the tracker are not read.
    """
    found = {}
    for key in wanted:
        name = PREFIX + meta_name(key)
        if name not in state:
            raise FssError(f"lacks {name!r}", where=where, hint="is it Meta's sam3.pt?")
        found[key] = _change(key)(state[name])
    return found


def _change(key: str) -> Callable[[Tensor], Tensor]:
    if third := re.search(r"\.([qkv])_proj\.", key):
        number = "qkv".index(third.group(1))
        return lambda t: torch.chunk(t, 3)[number].clone()
    if key.endswith(".position_embeddings"):
        return lambda t: t[:, 1:].clone()
    if key == "text_encoder.text_projection.weight":
        return lambda t: t.T.contiguous()
    return lambda t: t
