"""Checkpoints of the official VRP-SAM code and the settings they imply."""

from __future__ import annotations

import torch
from torch import Tensor

from fss_models.errors import FssError
from fss_models.methods.vrp_sam.encoder import VrpEncoder
from fss_models.methods.vrp_sam.model import VrpSam
from fss_models.official import OfficialCheckpoint
from fss_models.prototype_prompts import official

_TOKENS = "transformer_decoder.supp_q_feat.weight"
_CROSS = "transformer_decoder.transformer_cross_attention_layers"
_SELF = "transformer_decoder.transformer_self_attention_layers"
RULES: official.Rules = (
    ("downsample_query.0.", "encoder.reduce.conv."),
    ("merge_1.0.", "encoder.guide.conv."),
    ("transformer_decoder.supp_q_feat.", "encoder.tokens."),
    (f"{_CROSS}_0.0.norm.", "encoder.support_cross.norm."),
    (f"{_CROSS}_0.0.multihead_attn.", "encoder.support_cross."),
    (f"{_SELF}_0.0.norm.", "encoder.support_self.norm."),
    (f"{_SELF}_0.0.self_attn.", "encoder.support_self."),
    (f"{_CROSS}.0.norm.", "encoder.query_cross.norm."),
    (f"{_CROSS}.0.multihead_attn.", "encoder.query_cross."),
    (f"{_SELF}.0.norm.", "encoder.query_self.norm."),
    (f"{_SELF}.0.self_attn.", "encoder.query_self."),
)


def read(state: dict[str, Tensor], preset: str) -> OfficialCheckpoint:
    """Read the trained tensors of an official checkpoint and the settings that its shapes imply.

    Raises `FssError` naming the first missing, unknown or misshapen tensor.
    """
    given = official.without_prefix(state)
    if _TOKENS not in given:
        raise FssError(f"lacks {_TOKENS!r}", hint="is it a VRP-SAM checkpoint?")
    name, tokens = official.backbone_name(given), len(given[_TOKENS])
    backbone = official.empty_backbone(name)
    with torch.device("meta"):
        encoder = VrpEncoder(tokens=tokens, channels=sum(backbone.channels[:2]), width=official.prompt_width(preset),
                             dropout=0)
    return OfficialCheckpoint(config={"backbone": name, "tokens": tokens},
                              state=official.read_encoder(given, encoder, backbone, RULES),
                              also=("backbone_weights",))


def write(model: VrpSam) -> dict[str, Tensor]:
    """Convert the model to an official checkpoint. Raises `FssError` if it has parts that the official code lacks."""
    return official.write_encoder(model, RULES)
