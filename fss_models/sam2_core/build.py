"""Building a `SAM2Base` of the `sam2` package for a preset, and loading its checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib.resources import files
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import Tensor, nn

from fss_models.backbones.efficientnet import EfficientNetTrunk
from fss_models.errors import FssError
from fss_models.presets import RANDOM, Preset, find_preset
from fss_models.shipped.files import ShippedWeights, find_weights
from fss_models.state_dict import check_state

#: entries of a SAM 2.0 checkpoint without a place in a model that predicts no object scores: exactly these eight
OBJECT_SCORE_KEYS = frozenset(
    ["no_obj_ptr", "sam_mask_decoder.obj_score_token.weight"]
    + [f"sam_mask_decoder.pred_obj_score_head.layers.{i}.{p}" for i in range(3) for p in ("weight", "bias")]
)

OBJECT_SCORE_KEY_2_1 = "no_obj_embed_spatial"  # SAM 2.1's checkpoints have this one too


TRUNK = "image_encoder.trunk."


@dataclass(frozen=True, kw_only=True)
class WeightsOrigin:
    """Origin of a `SAM2Base`'s neck, memory and decoder.

    checkpoint  whether they come from a file; otherwise they are random
    shipped     name -> sha256 of that file, if it ships with the package
    """

    checkpoint: bool = False
    shipped: dict[str, str] = field(default_factory=dict)


def build_sam2(
    preset: str, *, weights: str | None = None, object_scores: bool = False, side: int | None = None
) -> Any:
    """A `SAM2Base` on the CPU, in evaluation mode, with `weights` (a local SAM 2.0 checkpoint) loaded strictly.

    Without `weights` the preset's shipped file is loaded where it has one that is installed, else values are random,
    as with `RANDOM`; `origin` tells which. Without object scores the decoder has no object-score token and nothing
    blanks a mask. `side` replaces the preset's input side (a multiple of 16). Raises `FssError` for an unknown preset,
    a checkpoint whose keys or shapes do not fit, and a damaged shipped file.
    """
    size = find_preset(preset)
    shipped = None if weights else find_weights(size.shipped)
    if side is not None:
        size = replace(size, side=side)
    model = instantiate(sam2_config(size, object_scores), _recursive_=True)
    path = shipped.verified() if shipped else weights
    if path and path != RANDOM:
        _load(model, path, spare=frozenset() if object_scores else OBJECT_SCORE_KEYS | {OBJECT_SCORE_KEY_2_1})
    model.origin = _origin(path, shipped)
    return model.eval()


def origin(sam: Any) -> WeightsOrigin:
    """Origin of a `SAM2Base`'s values; a model that `build_sam2` did not build counts as random."""
    found: WeightsOrigin = getattr(sam, "origin", WeightsOrigin())
    return found


def _origin(path: str | None, shipped: ShippedWeights | None) -> WeightsOrigin:
    return WeightsOrigin(checkpoint=path not in (None, "", RANDOM),
                  shipped={shipped.key: shipped.provenance.sha256} if shipped else {})


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
    """Change the tiny configuration to a preset's own sizes."""
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


def _load(model: Any, path: str, *, spare: frozenset[str]) -> None:
    """Load a checkpoint; one without tensors of the trunk leaves a trunk with pretrained weights unchanged."""
    state, have = _read(path), model.state_dict()
    if getattr(model.image_encoder.trunk, "pretrained", None) and not any(k.startswith(TRUNK) for k in state):
        have = {k: v for k, v in have.items() if not k.startswith(TRUNK)}
    check_state(state, have, where=path, hint="is it the checkpoint of this preset?", spare=spare)
    model.load_state_dict({k: state[k].to(v.dtype) for k, v in have.items()}, strict=False)


def _read(path: str) -> dict[str, Tensor]:
    try:
        if path.endswith(".safetensors"):
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds for a file that is no checkpoint
        raise FssError(f"is not a SAM 2 checkpoint: {error}", where=path) from error
    found: dict[str, Tensor] = state.get("model", state)
    return found
