"""The common part of the ImageNet backbones: levels of features, weight files, frozen state.

Levels follow the papers' names: layer2 (mid), layer3 (high) and layer4 (top).
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from fss_models.errors import FssError
from fss_models.state_dict import load_state

CYCTR_PREFIX = "backbone.body."
COUNTER = "num_batches_tracked"  # old files lack it; frozen normalisation never reads it


class ImagenetBackbone(nn.Module):
    """Five groups of layers `layer0` ... `layer4`, frozen, in evaluation mode unless `batch_statistics` is set.

    Tensor names are those of the official checkpoints: `layer0.0.weight`, `layer1.0.conv1.weight`, ...
    """

    #: channels of layer2, layer3 and layer4
    channels: tuple[int, int, int]
    layer0: nn.Module
    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module
    #: whether batch normalisation uses and updates the batch's statistics in training mode (PFENet, base learners)
    batch_statistics: bool = False

    def levels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Compute layer2 and layer3, each [N, C, h, w], of ImageNet-normalised [N, 3, R, R]."""
        return self.after_early(self.early(pixels))

    def early(self, pixels: Tensor) -> Tensor:
        """Compute layer1 [N, C, h, w] of ImageNet-normalised [N, 3, R, R]."""
        found: Tensor = self.layer1(self.layer0(pixels))
        return found

    def after_early(self, early: Tensor) -> tuple[Tensor, Tensor]:
        """Compute layer2 and layer3 from layer1."""
        mid = self.layer2(early)
        return mid, self.layer3(mid)

    def top(self, high: Tensor) -> Tensor:
        """Compute layer4 from layer3, which may be masked."""
        found: Tensor = self.layer4(high)
        return found

    def train(self, mode: bool = True) -> Self:
        """Keep the backbone in evaluation mode, so that its batch statistics stay ImageNet's, unless they may move."""
        return super().train(mode and self.batch_statistics)

    @abstractmethod
    def rename(self, key: str) -> str | None:
        """Our name of a tensor in the published ImageNet file; None for tensors we do not use (the classifier)."""

    def load_file(self, path: str) -> None:
        """Load the published ImageNet file, or the layers of an official checkpoint of a method that has this backbone.

        Raises `FssError` naming the first missing, unknown or misshapen tensor.
        """
        given = _renamed(self, _read(path), path)
        counters = {key for key in self.state_dict() if key.endswith(COUNTER)}
        load_state(self, given, where=path, hint="is it the file of this backbone?", optional=counters)


def _read(path: str) -> dict[str, Tensor]:
    if not Path(path).is_file():
        raise FssError("no such weight file", where=path, hint="give the backbone's ImageNet file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is no checkpoint
        raise FssError("is not a file of tensors", where=path) from error
    state = state.get("state_dict", state)
    return {k.removeprefix("module."): v for k, v in state.items() if isinstance(v, Tensor)}


def _renamed(backbone: ImagenetBackbone, state: dict[str, Tensor], path: str) -> dict[str, Tensor]:
    state = plain_names(state)
    topless = not backbone.layer4.state_dict()
    state = {k: v for k, v in state.items() if not (topless and k.startswith("layer4."))}
    official = any(key.startswith("layer0.") for key in state)
    if official:  # the rest of such a checkpoint belongs to the method
        return {k: v for k, v in state.items() if k.startswith("layer")}
    names = {key: backbone.rename(key) for key in state}
    if not any(names.values()):
        raise FssError(f"has unknown {min(state, default='')!r}", where=path, hint="is it the file of this backbone?")
    return {name: state[key] for key, name in names.items() if name is not None}


def plain_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo how CyCTR (`backbone.body.`) and SSP (a stem in two parts) name the backbone in their checkpoints."""
    if any(key.startswith(CYCTR_PREFIX) for key in state):
        return {k.removeprefix(CYCTR_PREFIX): v for k, v in state.items() if k.startswith(CYCTR_PREFIX)}
    return {ssp_name(k, forward=True): v for k, v in state.items()} if "layer0.0.0.weight" in state else state


def ssp_name(key: str, *, forward: bool) -> str:
    """Translate SSP's name of a tensor (layer0.0.<index>, layer0.1 for the last normalisation) to ours, or back."""
    for theirs, ours in (("layer0.1.", "layer0.7."), ("layer0.0.", "layer0.")):
        source, target = (theirs, ours) if forward else (ours, theirs)
        if key.startswith(source):
            return target + key.removeprefix(source)
    return key
