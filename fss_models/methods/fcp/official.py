"""Checkpoints of the official FCP code and the settings they imply."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fss_models.errors import FssError
from fss_models.methods.fcp.config import FcpConfig
from fss_models.methods.fcp.encoder import FcpEncoder
from fss_models.methods.fcp.model import Fcp
from fss_models.official import OfficialCheckpoint
from fss_models.prototype_prompts import official

_ATTENTION = "transformer_decoder.transformer_cross_attention_layers"
RULES: official.Rules = (
    ("downsample_query.0.", "encoder.reduce.conv."),
    ("downsample_sam_query.0.", "encoder.project."),
    ("transformer_decoder.merge_sam_and_mask.0.", "encoder.guide_sam.conv."),
    ("transformer_decoder.merge.0.", "encoder.guide_res.conv."),
    ("transformer_decoder.spt_protos.", "encoder.support_tokens."),
    ("transformer_decoder.qry_protos.", "encoder.query_tokens."),
    (f"{_ATTENTION}_spt.*.norm.", "encoder.support_steps.*.norm."),
    (f"{_ATTENTION}_spt.*.multihead_attn.", "encoder.support_steps.*."),
    (f"{_ATTENTION}_qry.*.norm.", "encoder.query_steps.*.norm."),
    (f"{_ATTENTION}_qry.*.multihead_attn.", "encoder.query_steps.*."),
    (f"{_ATTENTION}_1.0.norm.", "encoder.match_cross.norm."),
    (f"{_ATTENTION}_1.0.multihead_attn.", "encoder.match_cross."),
    ("transformer_decoder.transformer_self_attention_layers_1.0.norm.", "encoder.match_self.norm."),
    ("transformer_decoder.transformer_self_attention_layers_1.0.self_attn.", "encoder.match_self."),
)


def read(state: dict[str, Tensor], preset: str) -> OfficialCheckpoint:
    """Read the trained tensors of an official checkpoint and the settings that its shapes imply.

    Raises `FssError` naming the first missing, unknown or misshapen tensor.
    """
    given = official.without_prefix(state)
    name = official.backbone_name(given)
    config = {"backbone": name} | implied(given)
    backbone = official.empty_backbone(name)
    with torch.device("meta"):
        encoder = FcpEncoder(FcpConfig(**config), channels=sum(backbone.channels[:2]),
                             width=official.prompt_width(preset))
    return OfficialCheckpoint(config=config, state=official.read_encoder(given, encoder, backbone, RULES),
                              also=("backbone_weights",))


def implied(state: dict[str, Tensor]) -> dict[str, Any]:
    """The settings steps, support_tokens and query_tokens that a checkpoint without prefix implies.

    Raises `FssError` if one of them cannot be told.
    """
    steps = len({key.split(".")[2] for key in state if key.startswith(f"{_ATTENTION}_spt.")})
    sizes: dict[str, Any] = {"steps": steps}
    for side, name in (("spt", "support_tokens"), ("qry", "query_tokens")):
        key = f"transformer_decoder.{side}_protos.weight"
        if key not in state:
            raise FssError(f"lacks {key!r}", hint="is it an FCP checkpoint?")
        sizes[name] = len(state[key])
    if not steps:
        raise FssError(f"lacks '{_ATTENTION}_spt.0.norm.weight'", hint="is it an FCP checkpoint?")
    return sizes


def write(model: Fcp) -> dict[str, Tensor]:
    """Convert the model to an official checkpoint. Raises `FssError` for variants that the official code lacks."""
    if model.config.features != "both" or not model.config.matching:
        raise FssError("the official layout knows features: both with matching only")
    return official.write_encoder(model, RULES)
