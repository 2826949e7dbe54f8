"""Configuration of GF-SAM."""

from __future__ import annotations

from dataclasses import dataclass

from fss_models.errors import FssError
from fss_models.point_prompts.cells import CellSource


@dataclass(frozen=True, kw_only=True)
class GfSamConfig:
    """Settings of GF-SAM. The defaults are the constants of the released code (ANDYZAQ/GF-SAM, f227d1d).

    features        source of the cells that are compared; auto: the preset's (official: dinov2_large, base:
                    dinov2_base, nano and debug: SAM 2's trunk, other presets of SAM 2: dinov2_large)
    dino_weights    local file of DINOv2's weights in the hub's format; empty: random values
    dino_side       input side of DINOv2 in pixels, a multiple of 14
    antialias       whether the resize to `dino_side` is antialiased: not in the released code's torchvision 0.14, but
                    by default in newer ones
    empty_square    side in pixels of the square in the middle that stands for an empty support mask
    max_points      largest number of points for a photo
    point_factor    points per unit of the summed, filtered similarity map
    level           place of the level h between the least (0) and the largest (1) mean similarity; released: the middle
    distance_floor  least distance, in cells, by which a point's similarity to a component is divided where it is 0
    majority        share of a component's points that have to be most similar to the component itself
    decoder_batch   points that SAM's decoder takes at once; limits memory, not results
    """

    features: CellSource = "auto"
    dino_weights: str = ""
    dino_side: int = 518
    antialias: bool = False
    empty_square: int = 14
    max_points: int = 128
    point_factor: float = 1.0
    level: float = 0.5
    distance_floor: float = 1.0
    majority: float = 0.5
    decoder_batch: int = 64

    def __post_init__(self) -> None:
        """Raises `FssError` for values outside their range."""
        if self.dino_side < 14 or self.dino_side % 14:
            raise FssError(f"dino_side is {self.dino_side}", hint="DINOv2 needs a multiple of 14")
        for name in ("empty_square", "max_points", "decoder_batch"):
            if getattr(self, name) < 1:
                raise FssError(f"{name} is {getattr(self, name)}", hint="give at least 1")
        for name in ("point_factor", "distance_floor"):
            if getattr(self, name) <= 0:
                raise FssError(f"{name} is {getattr(self, name)}", hint="give a number above 0")
        for name in ("level", "majority"):
            if not 0 <= getattr(self, name) <= 1:
                raise FssError(f"{name} is {getattr(self, name)}", hint="give a share from 0 to 1")
