"""Official checkpoints of methods with an ImageNet trunk: the whole model by official names, every key checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fss_models.backbones.imagenet import ImagenetBackbone
from fss_models.errors import FssError
from fss_models.official import OfficialCheckpoint
from fss_models.prior_guided.segmenter import TrunkSegmenter
from fss_models.state_dict import check_state

Naming = Callable[[str], str | None]  # our name -> the official one; None: official files do not have it
Reader = Callable[[Mapping[str, Tensor], str], OfficialCheckpoint]
Writer = Callable[[Any], dict[str, Tensor]]
PREFIX = "module."  # added to every name by data parallel training


def plain_name(key: str) -> str | None:
    """The official name where a checkpoint holds layers and decoder side by side."""
    return key.removeprefix("backbone.").removeprefix("decoder.")


def whole_checkpoint(
    make: Callable[[str], TrunkSegmenter], name: Naming = plain_name, prefix: str = PREFIX
) -> tuple[Reader, Writer]:
    """`read` and `write` of a method whose checkpoints hold the whole model that `make` builds at a preset."""

    def read(state: Mapping[str, Tensor], preset: str) -> OfficialCheckpoint:
        """Read the trained tensors. Raises `FssError` naming the first missing, unknown or misshapen one."""
        return OfficialCheckpoint(state=read_whole(state, lambda: make(preset), preset, name), also=("weights",))

    def write(model: TrunkSegmenter) -> dict[str, Tensor]:
        """Convert the model to an official checkpoint. Raises `FssError` if its trunk is not an official one."""
        return write_whole(model, name, prefix)

    return read, write


def read_whole(
    state: Mapping[str, Tensor], build: Callable[[], TrunkSegmenter], preset: str, name: Naming = plain_name
) -> dict[str, Tensor]:
    """The trained tensors, by our names, of a checkpoint of exactly the model that `build` makes.

    Raises `FssError` for a preset without official checkpoints, and naming the first missing, unknown or misshapen
    tensor.
    """
    if preset in ("debug", "nano"):
        raise FssError(f"there is no official checkpoint of preset {preset!r}",
                       hint="take the preset of the checkpoint's backbone, such as resnet50")
    with torch.device("meta"):
        model = build()
    model.set_trainable()
    names = {key: name(key) for key in model.state_dict()}
    given = {key.removeprefix(PREFIX): value for key, value in state.items()}
    check_state(given, {official: v for key, v in model.state_dict().items() if (official := names[key])},
                hint="is it a checkpoint of this method and preset?")
    return {key: given[official] for key in sorted(model.trainable_names()) if (official := names[key])}


def write_whole(model: TrunkSegmenter, name: Naming = plain_name, prefix: str = PREFIX) -> dict[str, Tensor]:
    """The model's tensors by official names, on the CPU. Raises `FssError` if its trunk is not an official one."""
    if not isinstance(model.backbone, ImagenetBackbone):
        raise FssError("the official layout holds a ResNet or a VGG", hint="train at resnet50, resnet101 or vgg16")
    return {prefix + official: v.detach().cpu().contiguous()
            for key, v in model.state_dict().items() if (official := name(key))}
