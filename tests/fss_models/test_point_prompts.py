"""GF-SAM and Matcher beyond their golden cases: weight files, settings, prompts, edges, draws."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fss_models import registry
from fss_models.backbones import dinov2
from fss_models.backbones.dino import SIZES
from fss_models.clip import Prompt, PromptKind
from fss_models.errors import FssError
from fss_models.methods.gf_sam.model import NO_MASK, GfSam
from fss_models.methods.matcher import transport
from fss_models.methods.matcher.config import FAMILIES, MatcherConfig
from fss_models.methods.matcher.matching import base_points, draw_samples
from fss_models.point_prompts import build
from fss_models.prompts import mask_prompt
from fss_models.segmenter import Segmenter
from jobs.recipes import load_recipe
from tests.fss_models.prompting import small_vit

METHODS = ("gf_sam", "matcher")


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (40, 50, 3), dtype=np.uint8)


def disc(shift: int = 0) -> np.ndarray:
    y, x = np.mgrid[:40, :50]
    return np.asarray((y - 20) ** 2 + (x - 20 - shift) ** 2 < 120)


@pytest.mark.parametrize("method", METHODS)
def test_both_weight_files_are_read_and_recorded(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "large", (48, 2, 3))
    monkeypatch.setitem(build.PUBLISHED, "official", build.PublishedPreset(sam="vit_b", cells="dinov2_large"))
    sam, dino = small_vit(monkeypatch, tmp_path), str(tmp_path / "dino.pth")
    made = dinov2.build_dinov2("large")
    torch.save(made.hub_state(), dino)
    model: Any = registry.build(method, "official", {"dino_weights": dino}, weights=sam)
    want = {name: hashlib.sha256(Path(file).read_bytes()).hexdigest() for name, file in
            (("sam_vit_b", sam), ("dinov2_large", dino))}
    assert model.frozen_weights() == want
    assert not model.untrained
    assert torch.equal(model.cells.dino.vit.pos_embed, made.vit.pos_embed)
    assert registry.build(method, "official").untrained
    torch.save({k: v for k, v in made.hub_state().items() if k != "norm.bias"}, dino)
    with pytest.raises(FssError, match=r"lacks 'norm\.bias'"):
        registry.build(method, "official", {"dino_weights": dino}, weights=sam)


@pytest.mark.parametrize(("method", "preset", "config", "line"), [
    ("gf_sam", "official", {"features": "trunk"}, "need SAM 2"),
    ("gf_sam", "nano", {"features": "dinov2_base"}, "its own pixel scale"),
    ("gf_sam", "debug", {"dino_weights": "x.pth"}, "belong to DINOv2"),
    ("gf_sam", "debug", {"level": 1.5}, "level is 1.5"),
    ("gf_sam", "debug", {"point_factor": 0.0}, "point_factor is 0"),
    ("gf_sam", "debug", {"dino_side": 500}, "multiple of 14"),
    ("matcher", "debug", {"sample_sizes": (4, 2)}, "smaller one first"),
    ("matcher", "debug", {"masks_per_prompt": 2}, "SAM draws 1 or 3"),
    ("matcher", "debug", {"draws": 0}, "at least 1"),
    ("matcher", "nano", {}, "unknown preset 'nano'"),
])
def test_settings_that_do_not_fit_are_one_line(method: str, preset: str, config: dict[str, Any], line: str) -> None:
    with pytest.raises(FssError, match=line):
        registry.build(method, preset, config)


@pytest.mark.parametrize("method", METHODS)
def test_other_marks_than_masks_are_refused(method: str) -> None:
    model = registry.build(method, "debug")
    point = Prompt(kind=PromptKind.POINTS, points=torch.tensor([[20.0, 20.0]]))
    with pytest.raises(FssError, match="reads no points marks"):
        model.collate([[point]], torch.tensor([[40, 50]]))


def predicted(model: Segmenter, masks: list[np.ndarray]) -> torch.Tensor:
    images = model.prepare([picture(i) for i in range(3)])
    with torch.inference_mode():
        features = model.encode(images)
        memory = model.memorise(features, model.collate([[mask_prompt(m)] for m in masks], images.sizes))
        return model.segment(memory, features, torch.tensor([[i, 2] for i in range(len(masks))])).logits


def test_matcher_draws_alike_for_every_pair_and_every_time() -> None:
    model = registry.build("matcher", "debug").eval()
    both = predicted(model, [disc(), disc(10)])
    assert torch.equal(both, predicted(model, [disc(), disc(10)]))
    assert torch.equal(both[0], predicted(model, [disc()])[0])


def test_an_empty_mask_stands_for_the_middle() -> None:
    model = registry.build("gf_sam", "debug").eval()
    images = model.prepare([picture(0)])
    with torch.inference_mode():
        features = model.encode(images)
        prompts = model.collate([[mask_prompt(disc())]], images.sizes)
        prompts.masks.zero_()
        memory = model.memorise(features, prompts)
        prompts.masks[..., 25:39, 25:39] = 1
        drawn = model.memorise(features, prompts)
    assert torch.equal(memory.tensors["prototypes"], drawn.tensors["prototypes"])


def test_no_similarity_gives_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    model = registry.build("gf_sam", "debug").eval()
    assert isinstance(model, GfSam)
    choose = "fss_models.methods.gf_sam.model.choose_points"
    from fss_models.methods.gf_sam.similarity import choose_points

    monkeypatch.setattr(choose, lambda filtered, **kw: choose_points(filtered * torch.tensor([0.0, 1.0])[:, None, None],
                                                                     **kw))
    nothing, something = predicted(model, [disc(), disc(5)])
    assert bool((nothing == NO_MASK).all())
    assert bool((something != NO_MASK).any())


def test_all_pairs_at_once_give_the_masks_of_the_released_loop() -> None:
    """Photos at `nano`, where masks differ from pair to pair; one to three supports."""
    from benchmarks.official_loops.gf_sam import segment

    model = registry.build("gf_sam", "nano").eval()
    with torch.inference_mode():
        images = model.prepare([picture(i) for i in range(5)])
        features = model.encode(images)
        prompts = model.collate([[mask_prompt(disc(k)) for k in range(3)], [mask_prompt(disc(8))]], images.sizes)
        pairs = torch.tensor([[0, 3], [0, 4], [1, 4]])
        together = model.segment(model.memorise(features, prompts), features, pairs).logits > 0
        for mask, (s, n) in zip(together, pairs.tolist(), strict=True):
            count = int(prompts.counts[s])
            alone = segment(model, None, images.pixels[prompts.image[s, :count]], prompts.masks[s, :count],
                            images.pixels[n : n + 1])
            assert torch.equal(mask, alone)
    assert bool(together.any())


@pytest.mark.parametrize(("family", "recipe"), [("coco", "matcher_coco20i"), ("coco", "matcher_lvis92i"),
                                                ("fss", "matcher_fss1000"), ("parts", "matcher_pascal_part"),
                                                ("parts", "matcher_paco_part")])
def test_recipes_have_their_familys_settings(family: str, recipe: str) -> None:
    given = {k: v for k, v in load_recipe(recipe).methods[0].config.items() if k != "dino_weights"}
    want = {k: list(v) if isinstance(v, tuple) else v for k, v in FAMILIES[family].items()}
    assert given == want


def test_samples_are_distinct_points_of_every_size() -> None:
    points = torch.stack([torch.arange(20), torch.arange(20) * 3], dim=1)
    drawn = draw_samples(points, MatcherConfig(sample_sizes=(2, 4), draws=30))
    assert [tuple(s.shape) for s in drawn] == [(30, 2, 2), (30, 3, 2), (30, 4, 2)]
    assert all(len(one.unique(dim=0)) == size for size, s in zip((2, 3, 4), drawn, strict=True) for one in s)
    few = draw_samples(points[:5], MatcherConfig(sample_sizes=(2, 9)))
    assert [len(s) for s in few] == [10, 10, 5, 1], "of few points all combinations"


def test_centres_are_those_of_separate_clusters() -> None:
    middle = torch.tensor([[10, 10], [100, 12], [50, 90]])
    points = (middle[:, None] + torch.tensor([[-2, 0], [2, 0], [0, 2], [0, -2]])).flatten(0, 1)
    found = base_points(points, MatcherConfig(base_points="centres", centres=3))
    assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, middle.tolist()))


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (4, 9), (7, 2)])
def test_the_distance_is_the_least_cost(shape: tuple[int, int]) -> None:
    """Copies of rows and columns turn the problem into an assignment, which another algorithm solves."""
    from scipy.optimize import linear_sum_assignment

    cost = np.random.default_rng(sum(shape)).random(shape)
    every = np.repeat(np.repeat(cost, shape[1], axis=0), shape[0], axis=1)
    want = every[linear_sum_assignment(every)].mean()
    assert transport.uniform_emd(cost) == pytest.approx(want, abs=1e-7)


def test_matchers_prompts_decoded_once_give_the_masks_of_the_released_loop() -> None:
    from benchmarks.official_loops.matcher import prepare, segment

    model = registry.build("matcher", "debug").eval()
    together = predicted(model, [disc(), disc(10)]) > 0
    images = model.prepare([picture(i) for i in range(3)])
    marks = model.collate([[mask_prompt(disc())], [mask_prompt(disc(10))]], images.sizes)
    with torch.inference_mode():
        for i in range(2):
            alone = segment(model, prepare(model), images.pixels[i : i + 1], marks.masks[i], images.pixels[2:])
            assert torch.equal(together[i], alone)
    assert bool(together.any())
