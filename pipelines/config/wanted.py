"""What is wanted of masks: the settings that recipes, jobs, requests and the labeler share, each stated once."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from fss_models.forms import in_words
from fss_models.settings import TILE_OVERLAP, InstanceSource, tile_mistake
from pipelines.config.section import Section

Threshold = Annotated[float, Field(gt=0, lt=1, description="pixels above this probability belong to the object")]
Overlaps = Literal["keep", "resolve"]
Prevalence = Annotated[float, Field(gt=0, lt=1, description="share of the photos that show a class")]
Tile = Annotated[Literal["auto"] | Annotated[int, Field(ge=0)],
                 in_words("tile is neither a side in pixels, nor auto, nor 0")]
MAX_PAIRS = 4096  # (class, photo) pairs in a call of the model
CALIBRATED = ("prevalence", "empty_below", "review_below")  # settings that need a bundle with a calibrator


class Wanted(Section):
    """How the masks of a photo are made, and when one is trusted. What carries these settings inherits them.

    overlaps  keep: each class has its own mask (multi-label). resolve: a pixel belongs to the class for which its
              probability times the mask's score is highest (a semantic map); the first of equal ones wins
    pairs     always whole classes. With one class a call the masks equal those of C jobs with one class each bit for
              bit
    instances one mask for each object beside the mask of its class: the method's own, the connected pieces of the mask,
              or what SAM 2's decoder finds at points inside the mask
    tile      photos larger than a tile are seen in overlapping tiles at full size, supports at the same scale; auto:
              where the supports' objects would be small for the model without tiles
    """

    threshold: Threshold = 0.5
    overlaps: Overlaps = Field("keep", description="resolve: a pixel belongs to one class at most")
    pairs: int = Field(0, ge=0, le=MAX_PAIRS, description=(
        "(class, photo) pairs in a call of the model; 0: one class a call"))
    instances: InstanceSource = Field("none", description=(
        "one mask for each object: the method's own (model), connected pieces of the mask (pieces), or by SAM 2's "
        "decoder (prompts)"))
    speck: float = Field(0.0002, ge=0, lt=1, description=(
        "share of a photo's pixels below which a connected piece is no instance"))
    tile: Tile = Field(0, description=(
        "side in pixels of the tiles in which larger photos are labelled; 0: photos as a whole; auto: tiles where the "
        "supports' objects are too small without"))
    tile_overlap: float = Field(TILE_OVERLAP, ge=0, le=0.5, description=(
        "share of a tile's side that it shares with its neighbour"))
    prevalence: Prevalence = 0.5  # with a calibrator, like the next two: share of the photos that show a class
    empty_below: float = Field(0.5, ge=0, le=1, description="a class less probable than this gets an empty label")
    review_below: float = Field(0.5, ge=0, le=1, description=(
        "a mask less probably good than this gets the status review"))

    @model_validator(mode="after")
    def _tiles_fit(self) -> Self:
        if wrong := tile_mistake(self.tile, self.tile_overlap, self.instances):
            raise ValueError(wrong)
        return self

    def wanted(self) -> dict[str, Any]:
        """The settings of this section alone, without those of the class that inherits it."""
        return {name: getattr(self, name) for name in Wanted.model_fields}

    def changed(self) -> dict[str, Any]:
        """The settings that do not have their defaults."""
        return {k: v for k, v in self.wanted().items() if v != Wanted.model_fields[k].default}
