"""Negative clicks and references: where a click is put, what reaches the decoder, scores without any correction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fss_models.errors import FssError
from fss_models.sam2_core.core import take
from fss_models.sam2_core.matcher import MemoryMatcher
from pipelines.config.evaluate import EvalConfig
from pipelines.config.recipe import Recipe
from pipelines.data.episodes import load_episode
from pipelines.data.folds import FoldData
from pipelines.data.shardset import Shards
from pipelines.evaluation.evaluate import FeatureCache, SupportMemory, at_size, memorise_supports, score_episodes
from pipelines.papers.analysis.clicks import (
    CLICKS,
    REFERENCE,
    attend_memory,
    click_targets,
    correct_episodes,
    decode_targets,
    false_positive_centre,
    negative_photos,
    with_negative,
)
from pipelines.papers.analysis.negatives import analyse_negatives
from pipelines.papers.analysis.study import Study


@pytest.fixture
def model(recipe: Recipe, bundle: str) -> MemoryMatcher:
    found = Study.open(recipe, bundle).adapted
    assert isinstance(found, MemoryMatcher)
    return found


@pytest.fixture
def batch(recipe: Recipe, shards: Shards, model: MemoryMatcher) -> SupportMemory:
    """Three episodes with the memory of their supports."""
    chosen = list(FoldData.open(shards.url, 0).episodes(recipe.eval))[:3]
    with torch.no_grad():
        samples = [load_episode(shards, e) for e in chosen]
        return memorise_supports(model, FeatureCache(model), chosen, samples, recipe.eval)


def test_a_click_goes_deepest_into_the_largest_mistake() -> None:
    mask, truth, ignore = (np.zeros((20, 30), dtype=bool) for _ in range(3))
    assert false_positive_centre(mask, truth, ignore) is None
    mask[2:5, 2:5] = True
    assert false_positive_centre(mask, truth, ignore) == (3, 3)  # x, y
    mask[8:17, 10:19] = True
    assert false_positive_centre(mask, truth, ignore) == (14, 12)
    truth[8:17, 10:19] = True
    assert false_positive_centre(mask, truth, ignore) == (3, 3)  # right pixels are no mistake
    ignore[2:5, 2:5] = True
    assert false_positive_centre(mask, truth, ignore) is None  # nor are ignored ones
    ring = np.zeros((20, 30), dtype=bool)
    ring[2:19, 2:19] = True
    ring[5:16, 5:16] = False
    x, y = false_positive_centre(ring, np.zeros_like(ring), np.zeros_like(ring)) or (0, 0)
    assert ring[y, x]  # the middle of a ring is not in it


def test_without_correction_it_is_the_evaluation(recipe: Recipe, shards: Shards, bundle: str) -> None:
    """Would catch that the analysis, which does not call `segment`, scores something else than the method."""
    found = analyse_negatives(recipe, bundle=bundle, fold=0).document
    listed = FoldData.open(shards.url, 0).episodes(recipe.eval)
    table = score_episodes(Study.open(recipe, bundle).adapted, shards, listed, recipe.eval)[0].to_pydict()
    plain = found["scores"]["no correction"]
    for class_id in listed.class_ids:
        rows = [i for i, c in enumerate(table["class_id"]) if c == class_id]
        iou = sum(table["inter_fg"][i] for i in rows) / max(sum(table["union_fg"][i] for i in rows), 1)
        assert plain["per_class"][shards.classes[class_id].name] == pytest.approx(iou)
    assert list(found["scores"]) == [
        "no correction", "1 negative click", "3 negative clicks", "5 negative clicks", REFERENCE]
    assert found["clicked_episodes"] > 0


def teach(model: MemoryMatcher, batch: SupportMemory, steps: int = 50) -> None:
    """Train the decoder to predict the object everywhere without a click, and nowhere with a negative click."""
    model.requires_grad_(False)
    parts = [*model.core.sam.sam_mask_decoder.requires_grad_(True).parameters(),
             model.core.sam.sam_prompt_encoder.point_embeddings[0].weight.requires_grad_(True)]
    optimiser, generator = torch.optim.Adam(parts, lr=3e-3), torch.Generator().manual_seed(0)
    with torch.no_grad():
        attended = attend_memory(model, batch)
    maps = take(batch.features.maps, batch.queries)
    for _ in range(steps):
        clicks = torch.rand(3, 1, 2, generator=generator) * model.side
        corrected = model.core.decode(maps, attended, points=clicks, labels=torch.zeros(3, 1, dtype=torch.int32),
                                      candidates=True).logits
        plain = model.core.decode(maps, attended, candidates=True).logits
        optimiser.zero_grad()
        (F.softplus(corrected).mean() + F.softplus(-plain).mean()).backward()
        optimiser.step()


def test_a_click_lowers_its_pixel_with_a_decoder_that_knows_clicks(model: MemoryMatcher, batch: SupportMemory) -> None:
    """Would catch a point or its negative label that does not reach the decoder with the attended embedding."""
    teach(model, batch)
    with torch.no_grad():
        found = click_targets(model, batch, EvalConfig(at="square"))
    assert len(found.drop) == 3
    assert all(after < 0 < start for start, after in found.drop), found.drop


def test_answers_depend_on_the_place_of_clicks_and_on_memory(model: MemoryMatcher, batch: SupportMemory) -> None:
    with torch.inference_mode():
        attended = attend_memory(model, batch)
        plain = decode_targets(model, batch, attended)
        here, there = (decode_targets(model, batch, attended, torch.full((3, 1, 2), at)) for at in (10.0, 50.0))
        other = attend_memory(model, replace(batch, memory=batch.memory.take(torch.tensor([1, 2, 0]))))
    assert not torch.equal(here, plain)
    assert not torch.equal(here, there)
    assert not torch.equal(other, attended)


def test_clicks_are_on_mistakes_and_stop_where_there_are_none(model: MemoryMatcher, batch: SupportMemory) -> None:
    config = EvalConfig()
    first = batch.samples[0]
    everything = replace(first.targets[0], mask=np.ones_like(first.targets[0].mask))  # nothing can be a mistake
    batch = replace(batch, samples=[replace(first, targets=[everything]), *batch.samples[1:]])
    with torch.inference_mode():
        found = click_targets(model, batch, config)
    assert len(found.clicks[0]) == 0
    assert all(torch.equal(found.logits[n][0], found.logits[0][0]) for n in CLICKS)
    for row in (1, 2):
        target = batch.samples[row].targets[0]
        assert len(found.clicks[row]) == max(CLICKS)
        x, y = found.clicks[row][0].astype(int)
        assert not target.mask[y, x]
        assert float(at_size(found.logits[0][row], target.mask.shape)[y, x]) > 0
        assert not torch.equal(found.logits[1][row], found.logits[0][row])


def test_a_negative_reference_enters_memory_with_an_empty_mask(recipe: Recipe, shards: Shards,
                                                               model: MemoryMatcher) -> None:
    chosen = list(FoldData.open(shards.url, 0).episodes(recipe.eval))[:4]
    photos = negative_photos(shards, chosen, seed=0)
    for episode, photo in zip(chosen, photos, strict=True):
        assert episode.class_id not in shards.rows[photo]["class_ids"]
        assert shards.rows[photo]["split"] == "test"
        assert photo not in (episode.query, *episode.supports)
    assert negative_photos(shards, chosen, seed=0) == photos
    samples = [with_negative(shards, load_episode(shards, e), p) for e, p in zip(chosen, photos, strict=True)]
    assert not any(s.references[-1].mask.any() for s in samples)
    batch = memorise_supports(model, FeatureCache(model), chosen, samples, recipe.eval)
    assert batch.memory.counts.tolist() == [2, 2, 2, 2]
    _, found = correct_episodes(model, FeatureCache(model), shards, chosen, photos, recipe.eval)
    assert not torch.equal(found.reference, found.clicked.logits[0])


def test_methods_without_sam2s_memory_are_refused(recipe: Recipe, bundle: str, make_bundle: Callable[..., str]) -> None:
    for method in ("prior", "fssam"):
        with pytest.raises(FssError, match="does not decode a target from SAM 2's memory"):
            analyse_negatives(recipe, bundle=make_bundle(method, method), fold=0)
    with pytest.raises(FssError, match="which fold 2 tests"):
        analyse_negatives(recipe, bundle=bundle, fold=2)


def test_a_bundle_without_a_record_is_said_to_be_unchecked(recipe: Recipe, bundle: str,
                                                           make_bundle: Callable[..., str]) -> None:
    short = recipe.model_copy(update={"eval": EvalConfig(episodes=2)})
    unknown, known = (analyse_negatives(short, bundle=b, fold=0).analysis for b in (make_bundle("sansa"), bundle))
    assert any("does not record" in n for n in unknown.notes)
    assert not any("does not record" in n for n in known.notes)
