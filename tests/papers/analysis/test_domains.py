"""In- and out-of-domain: lists over chosen classes, test photos only, and bundles whose classes are known."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from fss_models.errors import FssError
from pipelines.config.evaluate import EvalConfig
from pipelines.config.recipe import Recipe
from pipelines.data.shardset import Shards
from pipelines.papers.analysis.domains import analyse_domains
from pipelines.papers.analysis.scores import draw_episodes_among


def test_a_list_over_chosen_classes_is_drawn_alike_and_only_over_them(shards: Shards) -> None:
    chosen = shards.base_classes(0)[:3]
    listed = draw_episodes_among(shards, chosen, EvalConfig(episodes=300))
    assert [e.episode_id for e in listed] == list(range(300))
    counts = Counter(e.class_id for e in listed)
    assert set(counts) <= set(chosen)
    assert max(counts.values()) < 2 * min(counts.values())  # classes are uniform
    for e in listed:
        pool = shards.photos_of(e.class_id, "test")
        assert {e.query, *e.supports} <= set(pool)
        assert e.query not in e.supports
    again = draw_episodes_among(shards, chosen[::-1], EvalConfig(episodes=300))
    assert again.sha256 == listed.sha256
    assert draw_episodes_among(shards, chosen, EvalConfig(episodes=300, seed=1)).sha256 != listed.sha256
    with pytest.raises(FssError, match="51 test photos"):
        draw_episodes_among(shards, chosen, EvalConfig(shots=50))
    with pytest.raises(FssError, match="draws its own lists"):
        draw_episodes_among(shards, chosen, EvalConfig(list="some.parquet"))


def test_both_domains_are_scored_with_and_without_training(recipe: Recipe, shards: Shards, bundle: str) -> None:
    written = analyse_domains(recipe, bundle=bundle, fold=0)
    scores = json.loads(Path(written.url).with_suffix(".json").read_text())["scores"]
    folds = {c.name: c.fold for c in shards.manifest.classes}
    assert {folds[n] for n in scores["out"]["adapted"]["per_class"]} == {0}
    assert 0 not in {folds[n] for n in scores["in"]["adapted"]["per_class"]}
    for domain in scores.values():
        assert domain["adapted"]["list_hash"] == domain["frozen"]["list_hash"]
        assert domain["adapted"]["miou"] != domain["frozen"]["miou"]
    assert "in-domain" in Path(written.url).read_text()


def test_domains_need_known_classes(recipe: Recipe, bundle: str, make_bundle: Callable[..., str]) -> None:
    with pytest.raises(FssError, match="was trained on no class of 'shapes'"):
        analyse_domains(recipe, bundle=make_bundle("sansa", "elsewhere", classes=["zebra"]), fold=0)
    with pytest.raises(FssError, match="which fold 1 tests"):
        analyse_domains(recipe, bundle=bundle, fold=1)
