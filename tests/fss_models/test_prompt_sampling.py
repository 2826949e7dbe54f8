"""Marks drawn from masks: where they lie, how many they are, what an evaluation repeats."""

from __future__ import annotations

import numpy as np
import pytest

from fss_models.clip import PromptKind
from fss_models.errors import FssError
from fss_models.prompt_sampling import kinds_of, sample_box, sample_points, sample_prompt, sample_scribble


def blob(side: int = 120) -> np.ndarray:
    y, x = np.mgrid[:side, :side]
    return (((x - 60) / 34) ** 2 + ((y - 50) / 22) ** 2) < 1


def test_points_are_distinct_pixels_of_the_object_in_raster_order() -> None:
    prompt = sample_points(blob(), np.random.default_rng(0), training=False)
    assert prompt.points is not None
    xs, ys = prompt.points.int().numpy().T
    assert len(xs) == 20
    assert blob()[ys, xs].all()
    order = ys * 120 + xs
    assert (np.diff(order) > 0).all()


def test_training_varies_how_many_points_there_are() -> None:
    rng = np.random.default_rng(0)
    counts = {len(sample_points(blob(), rng, training=True).labels) for _ in range(200)}  # type: ignore[arg-type]
    assert counts == set(range(1, 21))


def test_a_tiny_object_has_as_many_points_as_pixels() -> None:
    mask = np.zeros((9, 9), bool)
    mask[4, 4:7] = True
    prompt = sample_points(mask, np.random.default_rng(0), training=False)
    assert prompt.points is not None
    assert prompt.points.tolist() == [[4, 4], [5, 4], [6, 4]]
    assert (sample_scribble(mask, np.random.default_rng(0), training=False).points is not None)


def test_the_largest_merged_box_is_kept() -> None:
    mask = np.zeros((40, 40), bool)
    mask[2:6, 2:6] = True  # apart, and smaller
    mask[10:20, 10:20] = True
    mask[8:30, 30:33] = True
    mask[28:30, 12:33] = True  # joined with the column: overlaps nothing else
    box = sample_box(mask).box
    assert box is not None
    assert box.tolist() == [10, 8, 33, 30]


def test_a_scribble_stays_on_the_object_and_is_repeated_by_its_seed() -> None:
    first, again = (sample_scribble(blob(), np.random.default_rng(7), training=False) for _ in range(2))
    assert first.points is not None
    assert again.points is not None
    xs, ys = first.points.int().numpy().T
    assert blob()[ys, xs].all()
    assert 100 < len(xs) < blob().sum()
    assert (first.points == again.points).all()


def test_multi_draws_every_kind_alike() -> None:
    rng = np.random.default_rng(0)
    kinds = [sample_prompt(blob(), "multi", rng, training=True).kind for _ in range(400)]
    every = (PromptKind.MASK, PromptKind.POINTS, PromptKind.BOX, PromptKind.SCRIBBLE)
    shares = {k: kinds.count(k) / 400 for k in every}
    assert all(0.17 < share < 0.33 for share in shares.values())
    assert kinds_of("multi") == frozenset(shares)
    assert kinds_of("mask") == {PromptKind.MASK}


def test_wrong_requests_are_one_line() -> None:
    with pytest.raises(FssError, match="empty"):
        sample_prompt(np.zeros((4, 4), bool), "point", np.random.default_rng(0), training=True)
    with pytest.raises(FssError, match="known: mask, point"):
        sample_prompt(blob(), "circle", np.random.default_rng(0), training=True)  # type: ignore[arg-type]
