"""Matcher's golden cases: three families of settings, one shot and several. Random draws come from the files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fss_models.clip import Features
from fss_models.methods.matcher.config import MatcherConfig
from fss_models.methods.matcher.model import Matcher, MatcherAnalysis
from fss_models.point_prompts.decoder import DecodedPrompts, PromptDecoder
from fss_models.verification.frame import GoldenCheck
from fss_models.verification.point_prompts import PointCase, PointComparison, unit_pixels
from fss_models.verification.tolerances import GOLDEN

_NAMES = {  # setting of the released code -> ours
    "points_per_side": "points_per_side", "pred_iou_thresh": "dense_iou", "stability_score_thresh": "dense_stability",
    "sel_stability_score_thresh": "stability_filter", "iou_filter": "iou_filter", "box_nms_thresh": "nms",
    "num_centers": "centres", "use_box": "use_box", "max_sample_iterations": "draws", "alpha": "alpha", "beta": "beta",
    "exp": "exponent", "emd_filter": "emd_filter", "purity_filter": "purity_filter",
    "coverage_filter": "coverage_filter", "use_score_filter": "score_filter", "deep_score_norm_filter": "score_range",
    "deep_score_filter": "score_limit", "topk_scores_threshold": "top_share", "num_merging_mask": "merge"}


class RecordedMatcher(Matcher):
    """Matcher with the recorded draws of one case; it notes what SAM makes of every prompt."""

    outputs: dict[str, Tensor]

    def _prompts(self, points: list[Tensor]) -> tuple[list[Tensor], list[list[Tensor]]]:
        samples = sorted((k for k in self.outputs if k.startswith("samples/")), key=lambda k: int(k.split("/")[1]))
        return [self.outputs["points/used_xy"].long()], [[self.outputs[k].long() for k in samples]]

    def _decode(self, decoder: PromptDecoder, photo: Tensor, points: Tensor, boxes: Tensor | None, *, several: bool,
                off: int = 0) -> DecodedPrompts:
        found = super()._decode(decoder, photo, points, boxes, several=several, off=off)
        self.seen.append((points, decoder.masks(found), found.ious))
        return found

    def drain(self, samples: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits and IoU of prompts [draws, r, 2] in SAM's pixels, in their order, of the decodings so far."""
        made = {p.flatten().numpy().tobytes(): (one, iou) for points, low, ious in self.seen
                for p, one, iou in zip(points, low, ious, strict=True)}
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []
        found = [made[p.flatten().numpy().tobytes()] for one in samples for p in one]
        return torch.stack([f[0] for f in found]), torch.stack([f[1] for f in found])


def run_case(folder: Path, name: str, case: dict[str, Any]) -> Iterator[GoldenCheck]:
    """Compare one case with everything its files hold."""
    loaded = PointCase.load(folder, name)
    to, model = PointComparison(loaded, GOLDEN["matcher"]), build(loaded)
    images, target = loaded.images(model), loaded.shots
    with torch.no_grad():
        features = model.encode(images)
        if model.use.dense:
            count = model.use.points_per_side**2  # the target comes last
            low, ious = (torch.cat([m[i] for m in model.seen])[-count:] for i in (1, 2))
            to.real(sam__dense_low_res_logits_every2=low[:, :, ::2, ::2], sam__dense_iou=ious)
        model.seen = []
        memory, pair = model.memorise(features, loaded.prompts(model, images)), torch.tensor([[0, target]])
        seen, predicted = model.analyse(memory, features, pair)[0], None
        scale = model.sam.side / model.side
        low, ious = model.drain([s.float() * scale for s in seen.samples])
        to.real(sam__prompted_low_res_logits_every2=low[:, :, ::2, ::2], sam__prompted_iou=ious)
        predicted = model.segment(memory, features, pair)
    _inputs(to, images.pixels, features, memory.tensors["object"], target)
    _matches(to, seen, model, _similarity(features, target))
    _proposals(to, seen)
    to.mask("mask/final", predicted.logits)
    yield from to.checks()


def build(case: PointCase) -> RecordedMatcher:
    """The case's model with its values, its settings and its draws."""
    given = case.config["settings"]
    config = MatcherConfig(
        side=case.config["dino_side"], dense=bool(given["use_dense_mask"]), sample_sizes=tuple(given["sample_range"]),
        masks_per_prompt=3 if given["multimask_output"] else 1, merge_several=given["num_merging_mask"],
        base_points="all" if given["use_points_or_centers"] else "centres", **{v: given[k] for k, v in _NAMES.items()})
    model = RecordedMatcher(preset="official", config=config, parts=case.parts(side=case.config["dino_side"])).eval()
    model.outputs, model.seen = case.outputs, []
    return model


def _similarity(features: Features, target: int) -> Tensor:
    cells = features.maps["cells"].flatten(2)
    return cells[:target].transpose(1, 2).flatten(0, 1) @ cells[target]


def _inputs(to: PointComparison, pixels: Tensor, features: Features, marked: Tensor, target: int) -> None:
    cells = features.maps["cells"].flatten(2).transpose(1, 2)
    to.real(pixels__ref_every4=unit_pixels(pixels)[:target, :, ::4, ::4],
            pixels__target_every4=unit_pixels(pixels)[target:, :, ::4, ::4],
            features__ref=cells[:target].flatten(0, 1), features__target=cells[target],
            sam__embedding=features.maps["sam"][target:])
    to.discrete(masks__ref_patches=marked.flatten())


def _matches(to: PointComparison, seen: MatcherAnalysis, model: Matcher, similarity: Tensor) -> None:
    found = seen.matches
    to.real(match__similarity=similarity, match__kept_similarity=torch.from_numpy(found.similarity))
    to.discrete(match__reverse_ref_patch=torch.from_numpy(found.reverse),
                match__kept_target_patch=torch.from_numpy(found.target),
                match__kept_ref_patch=torch.from_numpy(found.reference))
    order = to.want["points/target_patch"].argsort()  # theirs is the order of a set, ours ascends
    to.discrete(points__target_patch=torch.from_numpy(found.target).unique()[order.argsort()],
                points__xy=seen.points[order.argsort()])
    given = [f"samples/{s.shape[1]}" for s in seen.samples]
    to.seen |= {"points/used_xy", *given}  # fed, not compared
    if "points/box" in to.want:
        to.real(points__box=seen.box.float())


def _proposals(to: PointComparison, seen: MatcherAnalysis) -> None:
    found, scores = seen.proposals, seen.scores
    to.discrete(merge__chosen=seen.chosen)
    to.real(proposals__iou=found.ious, scores__emd=scores.emd, scores__purity=scores.purity,
            scores__coverage=scores.coverage, scores__total=scores.total,
            scores__left_after_filters=scores.total[seen.left])
    to.pixel(proposals__area=found.masks.flatten(1).sum(dim=1),
             proposals__stability=found.stabilities.nan_to_num(nan=-1),
             proposals__masks_every2=found.masks[:, ::2, ::2])
