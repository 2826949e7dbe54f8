"""The linear probe: it fits linearly separable features, and its few-shot scores are those of the evaluation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from fss_models.errors import FssError
from pipelines.config.recipe import Recipe
from pipelines.data.folds import FoldData
from pipelines.data.shardset import Shards
from pipelines.evaluation.evaluate import score_episodes
from pipelines.papers.analysis.probe import IGNORED, LinearProbe, analyse_probe, label_map, predict_labels
from pipelines.papers.analysis.study import Study, draw_photos


def test_the_probe_solves_separable_features_and_nothing_more() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (3000,), generator=generator)
    centres = torch.randn(4, 12, generator=generator) * 3
    cells = centres[labels] + 0.3 * torch.randn(3000, 12, generator=generator) + 50  # far from the origin
    probe = LinearProbe.fit(cells, labels, 4)
    fresh = torch.randint(0, 4, (2, 6, 5), generator=generator)
    maps = (centres[fresh] + 50).permute(0, 3, 1, 2)
    assert torch.equal(probe(maps).argmax(dim=1), fresh)
    again = LinearProbe.fit(cells, labels, 4)
    assert torch.equal(again.weight, probe.weight)
    blind = LinearProbe.fit(torch.randn(3000, 12, generator=generator), labels, 4)
    random = torch.randn(1, 12, 40, 40, generator=generator)
    right = (blind(random).argmax(dim=1) == torch.randint(0, 4, (1, 40, 40), generator=generator)).float().mean()
    assert float(right) == pytest.approx(0.25, abs=0.05)
    small = torch.eye(3)[torch.tensor([[0, 1], [2, 0]])].permute(2, 0, 1)
    assert torch.equal(predict_labels(small, (8, 8))[[0, 0, 7, 7], [0, 7, 0, 7]], torch.tensor([0, 1, 2, 0]))


def test_a_label_map_holds_each_class_where_its_mask_is(shards: Shards) -> None:
    class_ids = shards.fold_classes(0)
    both = next(r for r in shards.rows.values() if len(set(class_ids) & set(r["class_ids"])) > 1)
    labels = label_map(shards, both["image_id"], class_ids)
    masks = {c: shards.sample(both["image_id"], c).mask for c in class_ids}
    for place, class_id in enumerate(class_ids):
        assert not (labels == place + 1)[~masks[class_id]].any()
    covered = np.sum(list(masks.values()), axis=0)
    assert np.array_equal(labels > 0, covered == 1)
    assert (labels[covered > 1] == IGNORED).all()
    without = next(r for r in shards.rows.values() if not set(class_ids) & set(r["class_ids"]))
    assert not label_map(shards, without["image_id"], class_ids).any()


def test_photos_are_drawn_class_by_class_and_once(shards: Shards) -> None:
    class_ids = shards.fold_classes(1)
    few = draw_photos(shards, class_ids, "test", len(class_ids), seed=3)
    assert len(set(few)) == len(few) == len(class_ids)
    every = draw_photos(shards, class_ids, "test", 10_000, seed=3)
    assert every[:len(few)] == few
    assert set(every) == {i for c in class_ids for i in shards.photos_of(c, "test")}
    assert len(set(every)) == len(every)


def test_the_few_shot_figures_are_those_of_the_evaluation(recipe: Recipe, shards: Shards, bundle: str) -> None:
    found = analyse_probe(recipe, bundle=bundle, fold=0, photos=12).document
    study, episodes = Study.open(recipe, bundle), FoldData.open(shards.url, 0).episodes(recipe.eval)
    table = score_episodes(study.adapted, shards, episodes, recipe.eval)[0].to_pydict()
    for class_id in episodes.class_ids:
        rows = [i for i, c in enumerate(table["class_id"]) if c == class_id]
        iou = sum(table["inter_fg"][i] for i in rows) / max(sum(table["union_fg"][i] for i in rows), 1)
        assert found["few_shot"]["adapted"]["per_class"][shards.classes[class_id].name] == pytest.approx(iou)
    assert found["train_photos"] == found["test_photos"] == 12
    for scores in found["probe"].values():
        assert scores["per_class"].keys() == found["few_shot"]["adapted"]["per_class"].keys()
        assert 0.5 < scores["background"] < 1  # a probe knows that most of a photo is background
        assert scores["miou"] == pytest.approx(np.mean(list(scores["per_class"].values())))


def test_known_classes_are_not_probed(recipe: Recipe, bundle: str, make_bundle: Callable[..., str]) -> None:
    with pytest.raises(FssError, match="which fold 1 tests"):
        analyse_probe(recipe, bundle=bundle, fold=1, photos=4)
    with pytest.raises(FssError, match="there is no fold 9"):
        analyse_probe(recipe, bundle=bundle, fold=9, photos=4)
    with pytest.raises(FssError, match="no trained tensors"):
        analyse_probe(recipe, bundle=make_bundle("sam2_frozen"), fold=0, photos=4)
