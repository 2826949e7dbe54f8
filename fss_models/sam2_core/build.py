"""Building a `SAM2Base` of the `sam2` package for a preset, and loading its checkpoint."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from fss_models.backbones.efficientnet import EfficientNetTrunk
from fss_models.errors import FssError
from fss_models.sam2_core.presets import Preset, find_preset

#: entries of a SAM 2.0 checkpoint without a place in a model that predicts no object scores: exactly these eight
OBJECT_SCORE_KEYS = frozenset(
    ["no_obj_ptr", "sam_mask_decoder.obj_score_token.weight"]
    + [f"sam_mask_decoder.pred_obj_score_head.layers.{i}.{p}" for i in range(3) for p in ("weight", "bias")]
)

OBJECT_SCORE_KEY_2_1 = "no_obj_embed_spatial"  # SAM 2.1's checkpoints have this one too


def build_sam2(
    preset: str, *, weights: str | None = None, object_scores: bool = False, side: int | None = None
) -> Any:
    """A `SAM2Base` on the CPU, in evaluation mode, with `weights` (a local SAM 2.0 checkpoint) loaded strictly.

    Without object scores the decoder has no object-score token and nothing blanks a mask. `side` replaces the
    preset's input side (a multiple of 16). Raises `FssError` for an unknown preset or a checkpoint whose keys or
    shapes do not fit.
    """
    size = find_preset(preset)
    if side is not None:
        size = replace(size, side=side)
    model = instantiate(sam2_config(size, object_scores), _recursive_=True)
    if weights:
        _load(model, weights, spare=frozenset() if object_scores else OBJECT_SCORE_KEYS | {OBJECT_SCORE_KEY_2_1})
    return model.eval()


def sam2_config(size: Preset, object_scores: bool) -> dict[str, Any]:
    """The `sam2` package's own configuration of a `SAM2Base` of that size, for `hydra.utils.instantiate`."""
    file = size.config or "sam2/sam2_hiera_t.yaml"
    with files("sam2").joinpath("configs", *file.split("/")).open() as text:
        config: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(text).model)  # type: ignore[assignment]
    for flag in ("pred_obj_scores", "pred_obj_scores_mlp", "fixed_no_obj_ptr"):
        config[flag] = object_scores
    config["no_obj_embed_spatial"] = object_scores and config.get("no_obj_embed_spatial", False)
    config["image_size"] = size.side
    return config if size.config else _shrink(config, size)


def _shrink(config: dict[str, Any], size: Preset) -> dict[str, Any]:
    """The tiny configuration with a preset's own sizes."""
    encoder, attention, memory = (config[k] for k in ("image_encoder", "memory_attention", "memory_encoder"))
    encoder["trunk"] = _trunk(encoder["trunk"], size)
    encoder["neck"]["backbone_channel_list"] = list(encoder["trunk"].channel_list)
    encoder["neck"]["d_model"] = encoder["neck"]["position_encoding"]["num_pos_feats"] = size.width
    attention |= {"d_model": size.width, "num_layers": size.memory_layers}
    attention["layer"] |= {"d_model": size.width, "dim_feedforward": size.feedforward, "dropout": 0.0}
    for part in ("self_attention", "cross_attention"):
        attention["layer"][part] |= {"embedding_dim": size.width, "feat_sizes": [size.side // 16] * 2, "dropout": 0.0}
    attention["layer"]["cross_attention"]["kv_in_dim"] = size.memory_width
    memory |= {"in_dim": size.width, "out_dim": size.memory_width}
    memory["position_encoding"]["num_pos_feats"] = size.memory_width
    memory["mask_downsampler"]["embed_dim"] = memory["fuser"]["layer"]["dim"] = size.width
    return config


def _trunk(config: dict[str, Any], size: Preset) -> nn.Module:
    if size.trunk == "efficientnet":
        return EfficientNetTrunk()
    shape = {"embed_dim": size.embed, "stages": list(size.stages), "window_spec": list(size.windows),
             "global_att_blocks": list(size.global_blocks)}
    trunk: nn.Module = instantiate(config | shape)
    return trunk


def _load(model: nn.Module, path: str, *, spare: frozenset[str]) -> None:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is no checkpoint
        raise FssError(f"is not a SAM 2 checkpoint: {error}", where=path) from error
    state = state.get("model", state)
    have = model.state_dict()
    for key in sorted(have.keys() - state.keys()):
        raise FssError(f"lacks {key!r}", where=path, mend="is it the checkpoint of this preset?")
    for key in sorted(state.keys() - have.keys() - spare):
        raise FssError(f"has unknown {key!r}", where=path, mend="is it the checkpoint of this preset?")
    for key, value in have.items():
        if state[key].shape != value.shape:
            raise FssError(f"{key!r} is {tuple(state[key].shape)}, the model's {tuple(value.shape)}", where=path)
    model.load_state_dict(state, strict=False)
