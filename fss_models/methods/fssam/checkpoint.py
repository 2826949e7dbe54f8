"""Reading the weights that FSSAM is built on: SAM 2's own file, or an official FSSAM checkpoint, which holds all."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fss_models.backbones.dinov2 import Dinov2
from fss_models.errors import FssError
from fss_models.official import read_tensors
from fss_models.sam2_core.presets import RANDOM

SAM2, DINO = "sam2.", "dino."


def parts(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """An official `state_dict` as tensors of SAM 2 and of DINOv2, each under its own code's names."""
    sam2, dino = ({k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
                  for start in (SAM2, DINO))
    return sam2, dino


def read_whole(weights: str | None) -> tuple[dict[str, Tensor], dict[str, Tensor]] | None:
    """The parts of the official FSSAM checkpoint `weights`; None where it is SAM 2's own file or no file."""
    if not weights or weights == RANDOM:
        return None
    sam2, dino = parts(read_tensors(weights))
    return (sam2, dino) if sam2 and dino else None


def check_tensors(given: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], *, where: str, mend: str) -> None:
    """Raises `FssError` naming the first key that is missing, unknown or misshapen."""
    for key in sorted(shapes.keys() - given.keys()):
        raise FssError(f"lacks {key!r}", where=where, mend=mend)
    for key in sorted(given.keys() - shapes.keys()):
        raise FssError(f"has unknown {key!r}", where=where, mend=mend)
    for key, shape in shapes.items():
        if tuple(given[key].shape) != shape:
            raise FssError(f"{key!r} is {tuple(given[key].shape)}, the model's {shape}", where=where, mend=mend)


def load_sam2(sam: Any, state: Mapping[str, Tensor], where: str, preset: str) -> None:
    """SAM 2's tensors of an official checkpoint into a `SAM2Base`, strictly."""
    shapes = {k: tuple(v.shape) for k, v in sam.state_dict().items()}
    check_tensors(state, shapes, where=where, mend=f"is it an FSSAM checkpoint of SAM 2 {preset}?")
    sam.load_state_dict(state)


def load_dinov2(prior: Dinov2, state: Mapping[str, Tensor], where: str) -> None:
    """DINOv2's tensors of an official checkpoint, strictly; the file's sha256 stands for them."""
    prior.load_hub_state(dict(state))
    prior.pretrained = {prior.name: hashlib.sha256(Path(where).read_bytes()).hexdigest()}
