"""PCA maps and class similarity: exact on known features; bundles that cannot be analysed are refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fss_models.errors import FssError
from pipelines.config.recipe import Recipe
from pipelines.data.shardset import Shards
from pipelines.papers.analysis.pca import Pca, analyse_pca, colour_maps, compare_features, measure_similarity
from pipelines.papers.analysis.study import Study


def test_pca_finds_the_axes_and_shares_of_low_rank_features() -> None:
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(20, 3, generator=generator))[0].T
    codes = torch.randn(4000, 3, generator=generator)
    codes = (codes - codes.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(codes.T.cov())).T  # uncorrelated, unit
    scales = torch.tensor([3.0, 2.0, 1.0])
    pca = Pca.fit((codes * scales) @ axes + 7.0)
    assert torch.allclose((pca.axes.float() @ axes.T).abs(), torch.eye(3), atol=1e-3)
    assert torch.allclose(pca.share.float(), scales.square() / 14, atol=1e-4)
    assert torch.allclose(pca.mean, torch.full((20,), 7.0, dtype=torch.float64), atol=1e-4)
    biggest = pca.axes.gather(1, pca.axes.abs().argmax(dim=1, keepdim=True))
    assert bool((biggest > 0).all())  # the same features always give the same colours


def test_equal_features_get_equal_colours_in_all_photos() -> None:
    kinds = torch.tensor([[4.0, 0, 0, 1], [0, 3, 0, 1], [0, 0, 2, 1], [0, 0, 0, 1]])
    grid = torch.tensor([[[0, 1], [2, 3]], [[3, 2], [1, 0]]])
    pictures, share = colour_maps(kinds[grid].permute(0, 3, 1, 2))
    assert pictures.shape == (2, 2, 2, 3)
    assert pictures.dtype == np.uint8
    assert np.array_equal(pictures[0], pictures[1][::-1, ::-1])
    assert len({tuple(c) for c in pictures.reshape(-1, 3).tolist()}) == 4
    assert float(share.sum()) == pytest.approx(1.0)


def test_similarity_tells_separable_from_mixed_features_and_leaves_out_pairs_of_one_photo() -> None:
    generator = torch.Generator().manual_seed(1)
    classes = torch.arange(4).repeat_interleave(20)
    photos = torch.arange(80) // 5
    apart = torch.eye(4)[classes] + 0.05 * torch.randn(80, 4, generator=generator)
    good = measure_similarity(apart, classes, photos)
    assert good.auc > 0.999
    assert good.within - good.between > 0.8
    assert sum(good.within_share) == pytest.approx(1.0, abs=0.02)
    random = torch.randn(80, 4, generator=generator)
    assert measure_similarity(random, classes, photos).auc == pytest.approx(0.5, abs=0.05)
    own = torch.eye(16)[photos]  # similar within a photo and nowhere else
    assert measure_similarity(own, classes, photos).within == pytest.approx(0.0)
    with pytest.raises(FssError, match="two classes"):
        measure_similarity(apart, torch.zeros(80), photos)


def test_the_page_shows_every_photo_frozen_and_adapted(recipe: Recipe, shards: Shards, bundle: str) -> None:
    written = analyse_pca(recipe, bundle=bundle, images=3)
    page = Path(written.url).read_text()
    assert page.count("data:image/png;base64,") == 6
    assert page.count("data:image/jpeg;base64,") == 3
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*', page)  # nothing is loaded from elsewhere
    found = json.loads(Path(written.url).with_suffix(".json").read_text())
    assert found == json.loads(json.dumps(written.document))
    assert set(found["classes"]) == {c.name for c in shards.manifest.classes if c.fold == 0}
    assert all(shards.rows[i]["split"] == "test" for i in found["photos"])
    assert 0 < found["similarity"]["adapted"]["auc"] < 1


def test_frozen_is_the_model_before_training(recipe: Recipe, bundle: str) -> None:
    """Would catch a frozen model that is the trained one or has new random values: only trained tensors may differ."""
    study = Study.open(recipe, bundle)
    frozen, adapted = (m.state_dict() for m in study.models.values())
    trained = study.adapted.trainable_names()
    same = {k for k in frozen if torch.equal(frozen[k], adapted[k])}
    assert frozen.keys() - trained <= same
    assert not {k for k in trained if "adapter" in k and "up_proj.weight" in k} & same
    class_ids = [c.class_id for c in study.unknown_classes]
    photos = [r["image_id"] for r in study.shards.images("test")]
    one, other = (compare_features(study, m, class_ids, photos[:8], 2, "cells") for m in study.models.values())
    assert torch.equal(one.photos, other.photos)  # the same cells are compared
    assert one.cells.shape == other.cells.shape
    assert not torch.equal(one.cells, other.cells)


def test_bundles_that_cannot_answer(recipe: Recipe, shards: Shards, make_bundle: Callable[..., str]) -> None:
    with pytest.raises(FssError, match="no trained tensors"):
        analyse_pca(recipe, bundle=make_bundle("prior", "prior"), images=2)
    every = [r["sha256"][:16] for r in shards.images("test")]
    with pytest.raises(FssError, match="was trained on"):
        analyse_pca(recipe, bundle=make_bundle("sansa", "seen", trained_on=every), images=2)
    with pytest.raises(FssError, match="stride-16"):
        analyse_pca(recipe, bundle=make_bundle("fcp", "fcp"), images=2)
