"""Supports that a method encodes apart from queries: the same scores, and prompts are decoded in queries alone."""

from __future__ import annotations

from typing import Any

import pytest

from fss_models import registry
from fss_models.methods.matcher.model import Matcher
from pipelines.config.evaluate import EvalConfig
from pipelines.data.folds import FoldData
from pipelines.evaluation.evaluate import score_episodes


def test_scores_are_the_same_and_supports_have_no_grid_of_prompts(shapes_shards: str,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    config, data = EvalConfig(episodes=8, shots=2, batch=4), FoldData.open(shapes_shards, 0)
    episodes, model = data.episodes(config), registry.build("matcher", "debug", seed=0).eval()
    dense, decoded = Matcher._dense, []

    def counted(self: Matcher, maps: Any) -> Any:
        decoded.append(maps)
        return dense(self, maps)

    monkeypatch.setattr(Matcher, "_dense", counted)
    apart, facts = score_episodes(model, data.shards, episodes, config)
    queries, supports = {e.query for e in episodes}, {i for e in episodes for i in e.supports}
    assert len(decoded) == len(queries)
    assert facts["images_encoded"] == len(queries) + len(supports)
    monkeypatch.setattr(Matcher, "supports_apart", False)
    together, facts = score_episodes(model, data.shards, episodes, config)
    assert facts["images_encoded"] == len(queries | supports)
    assert apart.equals(together)


def test_a_photo_in_both_roles_is_encoded_once_where_that_costs_least() -> None:
    """GF-SAM at debug takes its cells from SAM's own trunk, as `nano` does."""
    assert not registry.build("gf_sam", "debug", seed=0).supports_apart
    assert registry.build("gf_sam", "debug", {"features": "dinov2_small"}, seed=0).supports_apart
    assert not registry.build("prior", "debug", seed=0).supports_apart
