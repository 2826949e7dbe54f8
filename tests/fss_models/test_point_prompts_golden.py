"""GF-SAM and Matcher equal the official implementations, and would not if they were built a little differently."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fss_models.backbones.dinov2 import Dinov2
from fss_models.methods.gf_sam import graph, similarity
from fss_models.methods.gf_sam import model as gf_sam_model
from fss_models.methods.matcher import matching, proposals, scoring
from fss_models.methods.matcher import model as matcher_model
from fss_models.verification import gf_sam, matcher
from fss_models.verification.frame import GoldenCheck, run_folder
from tests.fss_models.shared_folder import GOLDEN, needs_golden

HERE = Path(__file__).parents[1] / "golden"
RUN_CASE = {"gf_sam": gf_sam.run_case, "matcher": matcher.run_case}
Patch = pytest.MonkeyPatch


@needs_golden
@pytest.mark.parametrize("method", RUN_CASE)
def test_every_golden_case_passes(method: str) -> None:
    checks = list(run_folder(GOLDEN / method))
    assert [c for c in checks if not c.passed] == []
    assert {c.case for c in checks} == set(json.loads((GOLDEN / method / "cases.json").read_text()))


def changed(patch: Patch, place: Any, name: str, change: Callable[[Any], Any]) -> None:
    patch.setattr(place, name, change(getattr(place, name)))


def first_argument(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda old: lambda first, *args, **kwargs: old(change(first), *args, **kwargs)


def result(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda old: lambda *args, **kwargs: change(old(*args, **kwargs))


def keyword(name: str, value: Any) -> Callable[[Any], Any]:
    return lambda old: lambda *args, **kwargs: old(*args, **{**kwargs, name: value})


def cells_after_the_final_norm(patch: Patch) -> None:
    changed(patch, Dinov2, "forward", lambda old: lambda self, pixels, **_: old(self, pixels))


def cells_scaled_one_by_one(patch: Patch) -> None:
    patch.setattr(gf_sam_model, "comparable", lambda cells: torch.nn.functional.normalize(cells, dim=1))


def half_a_cell_further(patch: Patch) -> None:
    changed(patch, gf_sam_model, "pixels_of", result(lambda pixels: pixels + 4))


def one_point_more(patch: Patch) -> None:
    changed(patch, gf_sam_model, "choose_points", keyword("factor", 1.1))


def level_of_the_largest(patch: Patch) -> None:
    changed(patch, similarity.SimilarityMaps, "level", lambda old: lambda self, share: old(self, 1.0))


def negatives_are_not_filtered(patch: Patch) -> None:
    changed(patch, gf_sam_model, "choose_points", lambda old: lambda filtered, **kw: old(filtered + 0.1, **kw))


def edges_one_way_only(patch: Patch) -> None:
    patch.setattr(graph, "_first_member", lambda joined: torch.arange(joined.shape[1]).expand(joined.shape[:2]))


def growth_from_the_worst_mask(patch: Patch) -> None:
    changed(patch, graph, "by_rank", first_argument(torch.neg))


def distances_are_left_out(patch: Patch) -> None:
    changed(patch, graph, "_distances", result(torch.ones_like))


def unanimous_components(patch: Patch) -> None:
    changed(patch, gf_sam_model, "compare_with_self", keyword("majority", 0.99))


def best_score_of_any_label(patch: Patch) -> None:
    changed(patch, gf_sam_model, "choose_masks",
            lambda old: lambda labels, scores, *rest: old(torch.where(labels == 0, 2, labels), -scores, *rest))


def one_way_matches(patch: Patch) -> None:
    changed(patch, np, "isin", result(np.ones_like))


def corners_of_patches(patch: Patch) -> None:
    changed(patch, matcher_model, "patch_points", result(lambda points: points - 7))


def one_step_enlargement(patch: Patch) -> None:
    changed(patch, matcher_model, "make_proposals",
            lambda old: lambda low, ious, *, sam_side, side: old(low, ious, sam_side=side, side=side))


def nothing_is_suppressed(patch: Patch) -> None:
    patch.setattr(matcher_model, "suppress", lambda boxes, scores, threshold: torch.arange(len(scores)))


def every_other_patch(patch: Patch) -> None:
    changed(patch, scoring, "_emd", first_argument(lambda patches: patches & (torch.arange(patches.shape[1]) % 2 == 0)))


def larger_epsilon(patch: Patch) -> None:
    patch.setattr(scoring, "_EPS", 1e-2)


def worst_are_merged(patch: Patch) -> None:
    changed(patch, matcher_model, "choose_proposals", first_argument(torch.neg))


def no_filters(patch: Patch) -> None:
    patch.setattr(matcher_model, "filter_proposals", lambda scores, config: torch.arange(len(scores.total)))


GF_SAM = [cells_after_the_final_norm, cells_scaled_one_by_one, half_a_cell_further, one_point_more,
          level_of_the_largest, negatives_are_not_filtered, edges_one_way_only, growth_from_the_worst_mask,
          distances_are_left_out]
MISTAKES: list[tuple[str, str, Callable[[Patch], None]]] = [
    *(("gf_sam", "case_a_1shot", m) for m in GF_SAM), ("gf_sam", "case_c_nothing_passes", best_score_of_any_label),
    ("gf_sam", "case_d_drawn_masks", unanimous_components),
    *(("matcher", "case_a_coco_1shot", m) for m in (
        cells_after_the_final_norm, one_way_matches, corners_of_patches, one_step_enlargement, nothing_is_suppressed,
        every_other_patch, larger_epsilon, worst_are_merged, no_filters)),
    ("matcher", "case_c_part_1shot", no_filters)]


@pytest.mark.parametrize(("method", "case", "mistake"), MISTAKES, ids=lambda v: getattr(v, "__name__", str(v)))
def test_a_mistake_makes_a_golden_case_fail(method: str, case: str, mistake: Callable[[Patch], None],
                                            monkeypatch: Patch) -> None:
    about = json.loads((HERE / method / "cases.json").read_text())[case]
    mistake(monkeypatch)
    assert mistaken(lambda: list(RUN_CASE[method](HERE / method, case, about)))


def mistaken(run: Callable[[], list[GoldenCheck]]) -> bool:
    """Whether a check is beyond the floor of a mistake; a wrong number of points may not even run to the end."""
    try:
        return any(c.mistaken for c in run())
    except (RuntimeError, KeyError, IndexError):
        return True


def test_equal_masks_form_one_component_whatever_their_number() -> None:
    """Propagation has to reach the ends of a long chain: mask i covers point i + 1 alone."""
    count = 40
    points = similarity.PointSet(cell=torch.arange(count)[None], valid=torch.ones(1, count, dtype=torch.bool), side=7)
    nearest = torch.zeros(count, 49, dtype=torch.bool)
    nearest[torch.arange(count - 1), torch.arange(1, count)] = True
    found = graph.connect(nearest.view(count, 7, 7), points, torch.zeros(count).long(), torch.arange(count))
    assert found.counts.tolist() == [1]
    assert found.label.unique().tolist() == [0]


def soft_reference(low: Tensor, side: int, cells: int) -> tuple[Tensor, Tensor]:
    full = torch.nn.functional.interpolate(low[:, None], size=side, mode="bilinear", align_corners=False) > 0
    soft = torch.nn.functional.interpolate(full.float(), size=cells, mode="bilinear", align_corners=False)
    return torch.nn.functional.interpolate(full.float(), size=cells, mode="nearest")[:, 0].bool(), soft[:, 0].flatten(1)


@pytest.mark.parametrize(("q", "side", "cells"), [(256, 1024, 37), (64, 256, 16), (40, 100, 9)])
def test_masks_are_sampled_as_if_they_had_been_made(q: int, side: int, cells: int) -> None:
    low = torch.randn(6, q, q, generator=torch.Generator().manual_seed(0))
    found = gf_sam_model.sample_masks(low, side=side, cells=cells)
    nearest, soft = soft_reference(low, side, cells)
    assert float((found.nearest != nearest).float().mean()) < 1e-3, "rounding at a logit of 0 aside"
    assert float(((found.soft() - soft).abs() > 1e-3).float().mean()) < 1e-3


def test_bits_keep_masks() -> None:
    masks = torch.rand(3, 13, 13, generator=torch.Generator().manual_seed(0)) > 0.5
    assert torch.equal(proposals.unpack_masks(proposals.pack_masks(masks), 13), masks)


def test_suppression_keeps_boxes_without_area_and_reorders() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 0, 0], [1, 0, 10, 10], [20, 20, 30, 30], [0, 0, 0, 0]])
    scores = torch.tensor([0.5, 0.9, 0.7, 0.1, 0.9])
    assert proposals.suppress(boxes, scores, 0.65).tolist() == [1, 4, 2, 3]
    assert proposals.suppress(boxes, scores, 1.0).tolist() == [1, 4, 2, 0, 3]


def test_the_better_half_of_crowded_matches_stays_in_order() -> None:
    similarity = np.random.default_rng(0).random((60, 60))
    every, half = (matching.match_patches(similarity, np.arange(50), crowded=c) for c in (60, 10))
    assert len(half.target) == len(every.target) // 2 > 5
    assert half.similarity.min() >= np.sort(every.similarity)[-len(half.target)]
    assert (np.diff(half.reference) > 0).all()
