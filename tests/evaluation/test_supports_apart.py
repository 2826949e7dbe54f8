"""Supports that a method encodes apart from queries: the same scores, and SAM sees queries alone."""

from __future__ import annotations

import pytest
from torch import Tensor

from fss_models import registry
from fss_models.methods.gf_sam.model import GfSam
from fss_models.prototype_prompts.sams import PromptedSam2
from fss_models.segmenter import Segmenter
from pipelines.config.evaluate import EvalConfig
from pipelines.data.folds import FoldData
from pipelines.evaluation.evaluate import score_episodes


def test_scores_are_the_same_and_supports_are_not_embedded(shapes_shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, data = EvalConfig(episodes=12, shots=2, batch=4), FoldData.open(shapes_shards, 0)
    episodes, model = data.episodes(config), registry.build("gf_sam", "debug", seed=0).eval()
    embed, seen = PromptedSam2.embed, []

    def counted(self: PromptedSam2, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(len(maps["stage2"]))
        return embed(self, maps)

    monkeypatch.setattr(PromptedSam2, "embed", counted)
    apart, facts = score_episodes(model, data.shards, episodes, config)
    queries, supports = {e.query for e in episodes}, {i for e in episodes for i in e.supports}
    assert sum(seen) == len(queries)
    assert facts["images_encoded"] == len(queries) + len(supports)
    monkeypatch.setattr(GfSam, "encode_supports", Segmenter.encode_supports)
    together, facts = score_episodes(model, data.shards, episodes, config)
    assert facts["images_encoded"] == len(queries | supports)
    assert apart.equals(together)
