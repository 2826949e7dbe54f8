"""GF-SAM's golden cases: inference with one shot or several, and masks given in SAM's place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fss_models.clip import Features
from fss_models.methods.gf_sam.config import GfSamConfig
from fss_models.methods.gf_sam.model import GfSam, GfSamAnalysis
from fss_models.methods.gf_sam.similarity import pixels_of
from fss_models.verification.figures import relative_error
from fss_models.verification.frame import GoldenCheck
from fss_models.verification.point_prompts import PointCase, PointComparison, unit_pixels, unpack_bits
from fss_models.verification.tolerances import GOLDEN


class GivenMasks(GfSam):
    """GF-SAM whose point masks are given, in the points' order, instead of drawn by SAM."""

    given: Tensor

    def _draw(self, features: Features, image: Tensor, points: Any) -> tuple[Tensor, Tensor]:
        logits = self.given.float() * 2 - 1
        return logits, logits.new_ones(len(logits))


def run_case(folder: Path, name: str, case: dict[str, Any]) -> Iterator[GoldenCheck]:
    """Compare one case with everything its files hold."""
    loaded = PointCase.load(folder, name)
    to, model = PointComparison(loaded, GOLDEN["gf_sam"]), build(loaded)
    images = loaded.images(model)
    with torch.no_grad():
        features = model.encode(images)
        memory = model.memorise(features, loaded.prompts(model, images))
        seen = model.analyse(memory, features, torch.tensor([[0, loaded.shots]]))
        _inputs(to, model, images.pixels, features, loaded.shots)
    _maps(to, seen, model)
    _gates(to, seen, features.maps["cells"][-1])
    _masks(to, seen, model)
    if case["kind"] != "given_masks":
        to.real(sam__embedding=features.maps["sam"][-1:], sam__low_res_logits=seen.low[:, None],
                sam__iou_predictions=seen.ious[:, None])
    yield from to.checks()


def build(case: PointCase) -> GfSam:
    """The case's model with its values."""
    config = GfSamConfig(features="dinov2_large", dino_side=case.config["dino_side"])
    parts = case.parts(side=case.config["sam_side"], antialias=case.config["antialias"])
    if not case.config["point_masks_given"]:
        return GfSam(preset="official", config=config, parts=parts).eval()
    model = GivenMasks(preset="official", config=config, parts=parts).eval()
    model.given = unpack_bits(case.inputs["point_masks_packed"])
    return model


def _inputs(to: PointComparison, model: GfSam, pixels: Tensor, features: Features, shots: int) -> None:
    cells: Any = model.cells
    small, plain = cells.resized(pixels), _tokens(cells(pixels, {}))
    scaled = F.normalize(plain, dim=1)
    unit = F.normalize(scaled, dim=2)  # of no output: what similarities are computed from
    to.record("cells", relative_error(_tokens(features.maps["cells"]), unit), GOLDEN["gf_sam"]["real"])
    for name, rows in (("ref", slice(shots)), ("target", slice(shots, None))):
        to.real(**{f"pixels__{name}_every4": unit_pixels(pixels)[rows, :, ::4, ::4],
                   f"pixels__dino_{name}_every4": small[rows, :, ::4, ::4],
                   f"features__{name}_prenorm": plain[rows], f"features__{name}": scaled[rows]})


def _tokens(cells: Tensor) -> Tensor:
    return cells.flatten(2).transpose(1, 2)


def _maps(to: PointComparison, seen: GfSamAnalysis, model: GfSam) -> None:
    maps, points = seen.maps, seen.points
    to.real(similarity__positive_max=maps.largest, similarity__positive_mean=maps.object,
            similarity__negative_mean=maps.background, similarity__half=maps.level(model.config.level)[0],
            similarity__mixed=maps.mixed, similarity__negative_scaled=maps.negative, similarity__filtered=maps.filtered)
    place = points.columns_rows()[0]
    to.discrete(points__grid_xy=place, points__pixel_xy_int=pixels_of(points, model.side)[0])
    to.real(points__pixel_xy=place * model.side / points.side)


def _gates(to: PointComparison, seen: GfSamAnalysis, target: Tensor) -> None:
    side = seen.points.side
    desired = (seen.desired > 0).unflatten(1, (side, side))
    to.discrete(graph__adjacency=seen.components.adjacency[0], graph__labels=seen.components.label[0],
                gating__positive_region=desired, gating__positive=seen.grown.positive,
                self__selection=seen.itself.own, labels__final=seen.labels)
    to.real(gating__mask_scores=seen.grown.scores, gating__class_scores=seen.grown.class_scores,
            self__point_similarity=seen.itself.by_component[0],
            self__union_similarity=torch.einsum("mc,cij->mij", seen.itself.prototypes, target))


def _masks(to: PointComparison, seen: GfSamAnalysis, model: GfSam) -> None:
    side, cells = model.side, seen.points.side
    full = F.interpolate(seen.low[:, None], size=(side, side), mode="bilinear", align_corners=False)[:, 0]
    area = (full > 0).flatten(1).sum(dim=1)
    to.discrete(masks__area=area.view(to.want["masks/area"].shape))
    to.real(masks__grid=seen.sampled.soft().unflatten(1, (cells, cells)))
    to.mask("mask/final", seen.prediction.logits)
    likely = ((full > 0) * (seen.inside * seen.chosen)[:, None, None]).amax(dim=0, keepdim=True)
    to.real(mask__probability_every4=likely[:, ::4, ::4])
