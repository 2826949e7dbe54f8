"""FSSAM's official checkpoints, which hold the whole model as `sam2.*` and `dino.*`.

Only SAM 2's mask decoder, memory encoder and memory attention were trained; the rest is the public SAM 2.0 and DINOv2,
unchanged. `read` returns the trained part. If the same file is also given as `weights`, the rest is taken from it:
`load_official("fssam", "small", path, weights=path)` needs no other file.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from fss_models.backbones.dinov2 import build_dinov2
from fss_models.errors import FssError
from fss_models.methods.fssam.checkpoint import DINO, SAM2
from fss_models.methods.fssam.model import OPTIMISED, PUBLISHED_SIDE, Fssam
from fss_models.official import OfficialCheckpoint
from fss_models.sam2_core.build import build_sam2
from fss_models.state_dict import check_state

Prior = Literal["dinov2_base", "dinov2_large"]
_PRIORS: dict[int, Prior] = {768: "dinov2_base", 1024: "dinov2_large"}  # by the width of the class token
_SIZES = ("tiny", "small", "base_plus", "large")


def read(state: dict[str, Tensor], preset: str) -> OfficialCheckpoint:
    """Read the trained tensors of an official `state_dict` under our names.

    The file must hold every tensor of SAM 2 (of the preset's size) and of DINOv2, and no other; 691 at `small`.
    Raises `FssError` naming the first key that is missing, unknown or misshapen.
    """
    check_state(state, _shapes(preset, _prior_of(state)), hint=f"is it an FSSAM checkpoint of SAM 2 {preset}?")
    trained = {k.replace(SAM2, "core.sam.", 1): v for k, v in state.items()
               if k.startswith(tuple(f"{SAM2}{part}" for part in OPTIMISED))}
    config = {"train": "published", "prior": _prior_of(state)}
    return OfficialCheckpoint(state=trained, config=config, also=("weights",))


def write(model: Fssam) -> dict[str, Tensor]:
    """Name all tensors of a model officially; with a DINOv2 prior the official code loads them strictly."""
    return {k: v.detach().cpu().contiguous() for k, v in _named(model.core.sam, model.prior).items()}


def _prior_of(state: dict[str, Tensor]) -> Prior:
    token = state.get("dino.cls_token")
    if token is None:
        raise FssError("lacks 'dino.cls_token'", hint="is it an FSSAM checkpoint?")
    if token.shape[-1] not in _PRIORS:
        raise FssError(f"'dino.cls_token' is {tuple(token.shape)}", hint="DINOv2 ViT-B/14 and ViT-L/14 are known")
    return _PRIORS[token.shape[-1]]


def _shapes(preset: str, prior: Prior) -> dict[str, torch.Size]:
    """Shapes of the official tensors by name."""
    if preset not in _SIZES:
        raise FssError(f"preset {preset!r} has no official checkpoints", hint=f"they exist at {', '.join(_SIZES)}")
    with torch.random.fork_rng(devices=[]):  # the values drawn here are discarded
        sam = build_sam2(preset, object_scores=True, side=PUBLISHED_SIDE)
    with torch.device("meta"):
        dino = build_dinov2(prior.removeprefix("dinov2_"))
    return {k: v.shape for k, v in _named(sam, dino).items()}


def _named(sam: Any, dino: Any) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {f"{SAM2}{k}": v for k, v in sam.state_dict().items()}
    return found | ({f"{DINO}{k}": v for k, v in dino.hub_state().items()} if dino is not None else {})
