"""Configuration of SAM 3 as a few-shot method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fss_models.errors import FssError

Mode = Literal["canvas", "token"]
Exemplar = Literal["box", "point"]
BoxRule = Literal["largest", "pieces", "whole"]
LayoutRule = Literal["auto", "pair", "five"]
Orientation = Literal["vertical", "horizontal"]
Arrangement = Literal["l_shape", "vertical_strip", "horizontal_strip"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class Sam3Config:
    """Settings; the defaults are those of "Few-Shot Semantic Segmentation Meets SAM3" (arXiv 2604.05433) on COCO.

    mode          canvas: supports and query in one picture, an image encoding for each photo and class, the accurate
                  one; token: a support's prompt is encoded once, an image encoding for each photo, for many classes
    exemplar      token mode: what stands for a support, its box or the box's centre
    class_names   whether the class name is part of the prompt; needs a tokenizer
    negative_boxes   whether negative examples become negative boxes, which cost 12 points of mIoU on COCO-20i with one
                  mined box a photo (published); else they are refused
    boxes         box of a mask: of its largest 8-connected piece, one for each piece of at least 1,000 pixels (8 at
                  most), or one around all pixels
    layout        canvas for one support (pair) or up to five (five); auto: whichever the number of supports needs
    orientation   of the pair's two cells: one above the other, or side by side
    query_first   whether the pair's query is above or to the left of the support (COCO: true, PASCAL: false)
    pair_ratio, five_ratio   share of the canvas's side that the supports get
    arrangement   of five supports around the query
    threshold     instances with a higher score are kept
    suppress      an instance is left out of the list where more than this share of the smaller of two masks is shared
                  with a better one; 1: never. The mask of the class is not affected
    chunk         pictures or pairs that are encoded together; bounds memory, changes no result
    precision     of the image encoder; all else is computed in float32
    tokenizer_weights   tokenizer.json of the weights: path, URL or hf://owner/repository/file; empty: the one beside
                  the weight file
    """

    mode: Mode = "canvas"
    exemplar: Exemplar = "box"
    class_names: bool = False
    negative_boxes: bool = False
    boxes: BoxRule = "largest"
    layout: LayoutRule = "auto"
    orientation: Orientation = "vertical"
    query_first: bool = True
    pair_ratio: float = 0.6
    five_ratio: float = 0.3
    arrangement: Arrangement = "l_shape"
    threshold: float = 0.5
    suppress: float = 0.5
    chunk: int = 4
    precision: Precision = "float32"
    tokenizer_weights: str = ""

    def __post_init__(self) -> None:
        for name in ("threshold", "suppress"):
            if not 0 <= getattr(self, name) <= 1:
                raise FssError(f"{name} is {getattr(self, name)}, not from 0 to 1")
        if self.chunk < 1:
            raise FssError(f"chunk is {self.chunk}", hint="give at least 1")
