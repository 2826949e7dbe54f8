"""Checkpoints of the official FCP and VRP-SAM code: names, completeness, shapes.

Such a checkpoint holds the frozen backbone and the trained encoder, but not SAM. Its backbone is ImageNet's; if the
same file is given as `backbone_weights`, the backbone is read from it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fss_models.backbones.imagenet import ImagenetBackbone
from fss_models.backbones.resnet import BLOCKS, build_resnet
from fss_models.backbones.vgg import Vgg16
from fss_models.errors import FssError
from fss_models.presets import find_preset
from fss_models.prototype_prompts.segmenter import PromptingSegmenter
from fss_models.sam1.build import SIZES
from fss_models.state_dict import check_state

PREFIX = "module."  # added to every name by distributed training
Rules = tuple[tuple[str, str], ...]


def without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove `module.` from the names."""
    return {key.removeprefix(PREFIX): value for key, value in state.items()}


def rename(key: str, rules: Rules, *, forward: bool) -> str:
    """Translate an official name to ours (or back) by the first rule that its beginning matches; `*` is a number."""
    for theirs, ours in rules:
        source, target = (theirs, ours) if forward else (ours, theirs)
        found = re.match(re.escape(source).replace(r"\*", r"(\d+)"), key)
        if found:
            number = found.group(1) if found.groups() else ""
            return target.replace("*", number) + key[found.end() :]
    return key


def backbone_name(state: Mapping[str, Tensor]) -> str:
    """Name of the backbone that a checkpoint holds. Raises `FssError` if it holds none of the three."""
    if "layer1.0.weight" in state:
        return "vgg16"
    blocks = len({key.split(".")[1] for key in state if key.startswith("layer3.")})
    for name, counts in BLOCKS.items():
        if counts[2] == blocks:
            return name
    raise FssError(f"has {blocks} blocks in layer3", hint="ResNet-50 has 6, ResNet-101 23; is it the whole checkpoint?")


def prompt_width(preset: str) -> int:
    """Width D of SAM's prompts at a preset."""
    return SIZES[preset].prompt_width if preset in SIZES else find_preset(preset).width


def empty_backbone(name: str) -> ImagenetBackbone:
    """Build a backbone on the meta device, without values."""
    with torch.device("meta"):
        return Vgg16() if name == "vgg16" else build_resnet(name)


def read_encoder(
    state: Mapping[str, Tensor], encoder: nn.Module, backbone: nn.Module, rules: Rules
) -> dict[str, Tensor]:
    """Read our trained tensors from a checkpoint of exactly `backbone` and `encoder` (both may be without values).

    Raises `FssError` naming the first missing, unknown or misshapen tensor.
    """
    ours = {f"encoder.{k}": v for k, v in encoder.state_dict().items()}
    want = {rename(k, rules, forward=False): v for k, v in ours.items()}
    check_state(state, want | backbone.state_dict())
    return {key: state[rename(key, rules, forward=False)] for key in ours}


def write_encoder(model: PromptingSegmenter, rules: Rules) -> dict[str, Tensor]:
    """Name backbone and encoder officially, with `module.` in front, on the CPU.

    Raises `FssError` if the model has other trained parts, for which such a checkpoint has no place.
    """
    backbone: Any = model.backbone
    if not isinstance(backbone, ImagenetBackbone) or model.trains_decoder:
        raise FssError("the official layout holds an ImageNet backbone and the prompt encoder, nothing else",
                       hint="train with backbone resnet50, resnet101 or vgg16 and train: encoder")
    own = {rename(f"encoder.{k}", rules, forward=False): v for k, v in model.encoder.state_dict().items()}
    return {PREFIX + k: v.detach().cpu().contiguous() for k, v in (backbone.state_dict() | own).items()}
