"""Reading the weights that FSSAM is built on: SAM 2's own file, or an official checkpoint with the whole model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fss_models.backbones.dinov2 import Dinov2
from fss_models.official import read_tensors
from fss_models.presets import RANDOM
from fss_models.state_dict import load_state
from fss_models.weight_files import file_sha256

SAM2, DINO = "sam2.", "dino."


def parts(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split an official `state_dict` into tensors of SAM 2 and of DINOv2, under the names of either's own code."""
    sam2, dino = ({k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
                  for start in (SAM2, DINO))
    return sam2, dino


def read_whole(weights: str | None) -> tuple[dict[str, Tensor], dict[str, Tensor]] | None:
    """The parts of the official FSSAM checkpoint `weights`; None if `weights` is SAM 2's own file or no file."""
    if not weights or weights == RANDOM:
        return None
    sam2, dino = parts(read_tensors(weights))
    return (sam2, dino) if sam2 and dino else None


def load_sam2(sam: Any, state: Mapping[str, Tensor], where: str, preset: str) -> None:
    """Load SAM 2's tensors of an official checkpoint into a `SAM2Base`. Raises `FssError` if they do not fit."""
    load_state(sam, state, where=where, hint=f"is it an FSSAM checkpoint of SAM 2 {preset}?")


def load_dinov2(prior: Dinov2, state: Mapping[str, Tensor], where: str) -> None:
    """Load DINOv2's tensors of an official checkpoint strictly, and record the file's sha256 as theirs."""
    prior.load_hub_state(dict(state))
    prior.pretrained = {prior.name: file_sha256(where)}
