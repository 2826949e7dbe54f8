"""Configuration of Matcher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from fss_models.errors import FssError
from fss_models.point_prompts.cells import CellSource

#: What the released scripts set for each family of datasets; the fields' defaults are those of COCO-20i and LVIS-92i.
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "coco": {},
    "fss": {"dense": False, "base_points": "centres", "sample_sizes": (4, 6), "draws": 30, "masks_per_prompt": 1,
            "iou_filter": 0.0, "stability_filter": 0.0, "nms": 1.0, "purity_filter": 0.0, "alpha": 0.8, "beta": 0.2,
            "exponent": 1.0, "merge": 10, "score_filter": False, "top_share": 0.7},
    "parts": {"dense": False, "use_box": True, "sample_sizes": (3, 6), "draws": 128, "masks_per_prompt": 1,
              "iou_filter": 0.0, "stability_filter": 0.0, "nms": 1.0, "purity_filter": 0.0, "coverage_filter": 0.3,
              "alpha": 0.5, "beta": 0.5, "merge": 5, "score_filter": False, "top_share": 0.7},
}
#: Of preset `debug`, where they are left at their defaults: few prompts, and no threshold that random masks never pass
_DEBUG: Mapping[str, Any] = {"points_per_side": 3, "draws": 2, "all_of": 0, "dense_iou": -1e9, "dense_stability": 0.0,
                             "iou_filter": 0.0, "stability_filter": 0.0}


@dataclass(frozen=True, kw_only=True)
class MatcherConfig:
    """Settings of Matcher. The defaults are the released script's for COCO-20i (aim-uofa/Matcher, d59b6c7).

    features          source of the cells that are matched; auto: the preset's (official: dinov2_large)
    dino_weights      local file of DINOv2's weights in the hub's format; empty: random values
    side              side in pixels of photos and masks, a multiple of 14; SAM sees them enlarged
    empty_square      side in pixels of the square in the middle that stands for an empty support mask
    dense             whether a grid of points over the photo gives proposals too
    points_per_side   points of a side of that grid
    dense_iou         a mask of the grid needs a predicted IoU above it
    dense_stability   ... and at least this stability: pixels with a logit above 1 per pixel with one above -1
    crowded           of more matches than this only the better half is kept
    negative_points   with negative examples: points off the object that go with every prompt, at most
    base_points       points that prompts are drawn from: all matched ones | centres of their clusters
    centres           clusters; centre_steps: steps of k-means at most
    use_box           whether the box around all points goes with every prompt
    sample_sizes      least and largest number of points of a prompt
    draws             prompts drawn of each size; of `all_of` points or fewer all combinations are taken instead
    masks_per_prompt  3: SAM's three candidates | 1
    iou_filter        a prompt's mask needs a predicted IoU above it, and at least `stability_filter`; 0: no limit
    nms               a mask whose box overlaps that of a better one by an IoU above it is dropped
    coverage_filter, emd_filter, purity_filter   least value of these measures, at most the best one's; 0: no limit
    alpha, beta, exponent   score = alpha * emd + beta * purity * coverage ** exponent
    score_filter      whether masks are merged by `score_limit` and `score_range`; else by `top_share`
    score_limit       largest 1 - score of a merged mask
    score_range       how much worse than the best it may be, relative to the worst
    top_share         a merged mask scores above this share of the best; 0: no limit
    merge             masks merged at most, with several shots `merge_several` (released 5-shot scripts)
    seed              of the draws and of k-means; every pair is drawn alike, whatever is segmented with it
    decoder_batch     prompts that SAM's decoder takes at once; limits memory, not results
    """

    features: CellSource = "auto"
    dino_weights: str = ""
    side: int = 518
    empty_square: int = 14
    dense: bool = True
    points_per_side: int = 64
    dense_iou: float = 0.88
    dense_stability: float = 0.95
    crowded: int = 40
    negative_points: int = 4
    base_points: Literal["all", "centres"] = "all"
    centres: int = 8
    centre_steps: int = 100
    use_box: bool = False
    sample_sizes: tuple[int, int] = (1, 6)
    draws: int = 64
    all_of: int = 8
    masks_per_prompt: int = 3
    iou_filter: float = 0.85
    stability_filter: float = 0.90
    nms: float = 0.65
    coverage_filter: float = 0.0
    emd_filter: float = 0.0
    purity_filter: float = 0.02
    alpha: float = 1.0
    beta: float = 0.0
    exponent: float = 0.0
    score_filter: bool = True
    score_limit: float = 0.33
    score_range: float = 0.1
    top_share: float = 0.0
    merge: int = 9
    merge_several: int = 5
    seed: int = 0
    decoder_batch: int = 64

    def __post_init__(self) -> None:
        """Raises `FssError` for values outside their range."""
        if self.side < 14 or self.side % 14:
            raise FssError(f"side is {self.side}", hint="DINOv2 needs a multiple of 14")
        for name in ("empty_square", "points_per_side", "centres", "draws", "merge", "merge_several", "decoder_batch"):
            if getattr(self, name) < 1:
                raise FssError(f"{name} is {getattr(self, name)}", hint="give at least 1")
        low, high = self.sample_sizes
        if not 1 <= low <= high:
            raise FssError(f"sample_sizes are {low} and {high}", hint="give two numbers from 1, the smaller one first")
        if self.masks_per_prompt not in (1, 3):
            raise FssError(f"masks_per_prompt is {self.masks_per_prompt}", hint="SAM draws 1 or 3")


def at_preset(config: MatcherConfig, preset: str) -> MatcherConfig:
    """The configuration at a preset: `debug` replaces some defaults."""
    if preset != "debug":
        return config
    plain = {f.name: f.default for f in fields(config)}
    return replace(config, **{k: v for k, v in _DEBUG.items() if getattr(config, k) == plain[k]})
