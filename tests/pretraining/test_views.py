"""Views, rings and clips of pretraining: a wrong warp or a mark beside its object would teach the model nonsense."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fss_models.pretraining.bank import QUARTERS, Scene, SceneRing, draw_clips
from fss_models.pretraining.objective import PretrainPrompt
from fss_models.pretraining.views import LabelledPhoto, ViewConfig, make_views, shrink

PLAIN = ViewConfig(colour=0.0, grey=0.0, paste=0.0)
RED, BLUE, GREEN = (230, 20, 20), (20, 20, 230), (20, 200, 20)


def _photo(colour: tuple[int, int, int] = RED, side: int = 96) -> LabelledPhoto:
    pixels = np.full((side, side, 3), 90, np.uint8)
    masks = np.zeros((2, side, side), bool)
    masks[0, 10:50, 20:60] = True
    masks[1, 60:90, 50:94] = True
    pixels[masks[0]], pixels[masks[1]] = colour, BLUE
    return LabelledPhoto(pixels=pixels, masks=masks)


def _coloured(pixels: torch.Tensor, colour: tuple[int, int, int]) -> torch.Tensor:
    return (pixels.int() - torch.tensor(colour).view(3, 1, 1)).abs().amax(dim=0) < 60


def _iou(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a & b).sum() / (a | b).sum().clamp(min=1))


@pytest.mark.parametrize("seed", range(5))
def test_masks_follow_the_pixels(seed: int) -> None:
    views = make_views(_photo(), PLAIN, np.random.default_rng(seed), 96)
    for pixels, masks in zip(views.pixels, views.masks, strict=True):
        for mask, colour in zip(masks, (RED, BLUE), strict=True):
            if mask.sum() > 200:
                assert _iou(_coloured(pixels, colour), mask) > 0.9


def test_views_of_a_photo_differ_and_are_the_draws_of_their_seed() -> None:
    views, again = (make_views(_photo(), ViewConfig(), np.random.default_rng(3), 64) for _ in range(2))
    assert torch.equal(views.pixels, again.pixels)
    assert torch.equal(views.masks, again.masks)
    assert not torch.equal(views.masks[0], views.masks[1])


@pytest.mark.parametrize("seed", range(12))
def test_one_object_stays_in_sight_of_every_view(seed: int) -> None:
    views = make_views(_photo(), PLAIN, np.random.default_rng(seed), 64)
    seen = views.masks.flatten(2).any(dim=2)  # [V, I]
    assert seen.all(dim=0).any()


def test_a_pasted_object_hides_what_is_below_it() -> None:
    config = ViewConfig(colour=0.0, grey=0.0, paste=1.0)
    for seed in range(8):
        views = make_views(_photo(), config, np.random.default_rng(seed), 96, other=_photo(GREEN))
        if views.masks.shape[1] == 3:
            break
    assert views.masks.shape[1] == 3
    assert not (views.masks[:, :2] & views.masks[:, 2:]).any()
    large = [(p, m[2]) for p, m in zip(views.pixels, views.masks, strict=True) if m[2].sum() > 200]
    assert large
    for pixels, pasted in large:
        assert max(_iou(_coloured(pixels, GREEN), pasted), _iou(_coloured(pixels, BLUE), pasted)) > 0.6


def test_a_photo_without_objects_has_no_views() -> None:
    empty = LabelledPhoto(pixels=np.zeros((8, 8, 3), np.uint8), masks=np.zeros((0, 8, 8), bool))
    assert shrink(empty, 16).masks.shape == (0, 16, 16)
    with pytest.raises(ValueError, match="without objects"):
        make_views(empty, PLAIN, np.random.default_rng(0), 16)


def _scene(n: int, side: int = 32) -> Scene:
    views = make_views(_photo(), PLAIN, np.random.default_rng(n), side)
    return Scene.make(views, lambda x: [x.float().mean(dim=1, keepdim=True) for _ in range(4)], torch.float32)


def test_a_ring_holds_the_same_scenes_whenever_it_is_begun() -> None:
    made: list[int] = []

    def make(n: int) -> Scene:
        made.append(n)
        return _scene(n)

    whole, later = SceneRing(make, size=4, fresh=2), SceneRing(make, size=4, fresh=2, step=3)
    for step in range(4):
        for scene in whole.missing(step):
            whole.add(scene)
    assert made == list(range(10))
    for scene in later.missing(3):
        later.add(scene)
    assert made[10:] == [6, 7, 8, 9]
    for a, b in zip(whole.scenes, later.scenes, strict=True):
        assert torch.equal(a.stages[0], b.stages[0])


def test_marks_lie_on_the_object() -> None:
    scenes = [_scene(n) for n in range(6)]
    drawn = [c for seed in range(10) for c in draw_clips(scenes, np.random.default_rng(seed), clips=4, absent=0.0)]
    assert {c.mark: len(c.masks) for c in drawn[:3]} == QUARTERS
    for clips in drawn:
        assert clips.masks[:, 0].flatten(1).any(dim=1).all()
        if clips.mark == PretrainPrompt.POINTS:
            assert clips.points is not None
            assert clips.labels is not None
            for mask, points, labels in zip(clips.masks[:, 0], clips.points, clips.labels, strict=True):
                x, y = points.long().unbind(1)
                assert torch.equal(mask[y, x], labels.float())
        if clips.mark == PretrainPrompt.BOX:
            assert clips.labels is not None
            assert clips.labels.tolist() == [[2, 3]]


def test_an_absent_object_is_in_no_mask_of_the_last_view() -> None:
    scenes = [_scene(n) for n in range(6)]
    for clips in draw_clips(scenes, np.random.default_rng(0), clips=8, absent=1.0):
        assert clips.masks[:, 0].flatten(1).any(dim=1).all()
        assert not clips.masks[:, -1].any()
