"""Building the frozen parts of GF-SAM and Matcher for a preset."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fss_models.errors import FssError
from fss_models.point_prompts.cells import Cells, DinoCells, build_cells
from fss_models.preprocess import FloorMasks, Preprocessor
from fss_models.presets import RANDOM, find_preset, preprocessor
from fss_models.prototype_prompts.sams import PromptedSam, PromptedSam1, PromptedSam2
from fss_models.sam1.build import SIZES, build_sam1
from fss_models.sam2_core.build import build_sam2, origin
from fss_models.sam2_core.core import Sam2Core


@dataclass(frozen=True, kw_only=True)
class PublishedPreset:
    """A preset on SAM v1: names of SAM's and DINOv2's sizes."""

    sam: str
    cells: str


PUBLISHED = {
    "official": PublishedPreset(sam="vit_h", cells="dinov2_large"),
    "base": PublishedPreset(sam="vit_b", cells="dinov2_base"),
}
_SMALL = ("debug", "nano")  # presets whose cells are the trunk's


@dataclass(frozen=True, kw_only=True)
class PointParts:
    """The frozen parts that a method is built around.

    checkpoint  whether SAM's values came from a file, given or shipped
    pretrained  whether those of the cells' source did
    frozen      pretrained weights: name -> sha256; of a file for SAM 2 the caller keeps the record
    """

    sam: PromptedSam
    cells: Cells
    preprocessor: Preprocessor
    checkpoint: bool
    pretrained: bool
    frozen: dict[str, str]


def build_point_parts(
    preset: str, *, source: str, cell_side: int, antialias: bool, cell_weights: str, weights: str | None, side: int = 0
) -> PointParts:
    """Build SAM v1 at a published preset, else SAM 2, and the source of cells; `auto` is the preset's own.

    cell_side is DINOv2's input side in pixels; cell_weights its file in the hub's format; weights SAM's own file;
    side that of the photos, by default SAM's.
    Raises `FssError` for combinations that do not exist and for files that do not fit.
    """
    published = PUBLISHED.get(preset)
    name = _source(preset, source)
    if name == "trunk" and published:
        raise FssError(f"features 'trunk' need SAM 2, not {preset!r}", hint="take auto, dinov2_base or dinov2_large")
    if name != "trunk" and not published and find_preset(preset).trunk != "hiera":
        raise FssError(f"preset {preset!r} has its own pixel scale: features {name!r} cannot share it",
                       hint="take features 'auto', or another preset")
    if name == "trunk" and cell_weights:
        raise FssError("dino_weights belong to DINOv2, and the features here are the trunk's",
                       hint="name the features, or leave the file out")
    sam, checkpoint = _sam1(published.sam, weights) if published else _sam2(preset, weights)
    cells = build_cells(name, side=cell_side, antialias=antialias, weights=cell_weights)
    frozen, pretrained = dict(cells.dino.pretrained) if isinstance(cells, DinoCells) else {}, bool(cell_weights)
    if isinstance(sam, PromptedSam2):
        trunk, made = getattr(sam.core.sam.image_encoder.trunk, "pretrained", {}), origin(sam.core.sam)
        frozen, checkpoint = frozen | trunk | made.shipped, made.checkpoint
        pretrained = bool(trunk) or checkpoint if name == "trunk" else pretrained
    elif published and checkpoint and weights:
        frozen[f"sam_{published.sam}"] = _digest(weights)
    given = preprocessor(preset) if not published else Preprocessor(side=side or sam.side)
    resize = FloorMasks(side=side or given.side, mean=given.mean, std=given.std)
    return PointParts(sam=sam, cells=cells, preprocessor=resize, checkpoint=checkpoint, pretrained=pretrained,
                      frozen=frozen)


def _source(preset: str, source: str) -> str:
    if source != "auto":
        return source
    if preset in PUBLISHED:
        return PUBLISHED[preset].cells
    return "trunk" if preset in _SMALL else "dinov2_large"


def _sam1(size: str, weights: str | None) -> tuple[PromptedSam, bool]:
    checkpoint = weights not in (None, "", RANDOM)
    return PromptedSam1(build_sam1(SIZES[size], weights=weights if checkpoint else None)), checkpoint


def _sam2(preset: str, weights: str | None) -> tuple[PromptedSam, bool]:
    core = Sam2Core(build_sam2(preset, weights=weights))
    return PromptedSam2(core), origin(core.sam).checkpoint


def _digest(path: str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
