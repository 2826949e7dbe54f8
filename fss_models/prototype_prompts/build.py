"""Building SAM and the class-consistent features for a preset."""

from __future__ import annotations

from dataclasses import dataclass

from fss_models.backbones.imagenet import ImagenetBackbone
from fss_models.errors import FssError
from fss_models.preprocess import FloorMasks, Preprocessor
from fss_models.presets import PRESETS, RANDOM, find_preset, preprocessor
from fss_models.prototype_prompts.levels import DinoLevels, build_backbone
from fss_models.prototype_prompts.sams import PromptedSam, PromptedSam1, PromptedSam2
from fss_models.sam1.build import SIZES, build_sam1
from fss_models.sam2_core.build import build_sam2, origin
from fss_models.sam2_core.core import Sam2Core
from fss_models.weight_files import file_sha256

IMAGE_SIDE = 512  # side of the published code's images; SAM gets the same pixels enlarged to its own side
ALL_PRESETS = (*PRESETS, *SIZES)
_SMALL = ("debug", "nano")  # presets that work at SAM 2's side, on its trunk


@dataclass(frozen=True, kw_only=True)
class PromptingParts:
    """The frozen parts that a method is built around.

    backbone    ImageNet backbone or DINOv2; None if SAM 2's trunk serves as backbone
    checkpoint  whether SAM's values came from a file, given or shipped
    frozen      pretrained weights other than SAM's file: name -> sha256
    """

    sam: PromptedSam
    backbone: ImagenetBackbone | DinoLevels | None
    preprocessor: Preprocessor
    checkpoint: bool
    frozen: dict[str, str]


def build_parts(preset: str, *, backbone: str, backbone_weights: str, weights: str | None) -> PromptingParts:
    """Build SAM v1 at `vit_b`, `vit_l`, `vit_h`, else SAM 2; backbone `auto` is ResNet-50, at debug and nano the trunk.

    Raises `FssError` for combinations that do not exist and for files that do not fit.
    """
    name = ("trunk" if preset in _SMALL else "resnet50") if backbone == "auto" else backbone
    if name == "trunk" and preset in SIZES:
        raise FssError(f"backbone 'trunk' needs SAM 2, not {preset!r}", hint="take resnet50, resnet101 or vgg16")
    if name == "trunk" and backbone_weights:
        raise FssError("backbone_weights belongs to a backbone of its own", hint="name the backbone, or leave it out")
    if name != "trunk" and preset not in SIZES and find_preset(preset).trunk != "hiera":
        raise FssError(f"preset {preset!r} has its own pixel scale: backbone {name!r} cannot share it",
                       hint="take backbone 'auto', or another preset")
    sam: PromptedSam
    checkpoint = weights not in (None, "", RANDOM)
    if preset in SIZES:
        sam, frozen = PromptedSam1(build_sam1(SIZES[preset], weights=weights if checkpoint else None)), {}
        resize = FloorMasks(side=IMAGE_SIDE)
    else:
        sam = PromptedSam2(Sam2Core(build_sam2(preset, weights=weights)))
        checkpoint = origin(sam.core.sam).checkpoint
        frozen = dict(getattr(sam.core.sam.image_encoder.trunk, "pretrained", {}))
        given = preprocessor(preset, None if preset in _SMALL else IMAGE_SIDE)
        resize = FloorMasks(side=given.side, mean=given.mean, std=given.std)
    own = None if name == "trunk" else build_backbone(name, backbone_weights)
    if backbone_weights:
        frozen[name] = file_sha256(backbone_weights)
    return PromptingParts(sam=sam, backbone=own, preprocessor=resize, checkpoint=checkpoint, frozen=frozen)
