"""Several draws of test episodes: one list, numbered anew, that leaves a single draw as it was."""

from __future__ import annotations

import pytest

from pipelines.config.evaluate import EvalConfig
from pipelines.config.run import eval_digest
from pipelines.data.episodes import Episode, EpisodeList, join_lists


def drawn(seed: int, *queries: int) -> EpisodeList:
    rows = tuple(Episode(i, 0, 1, q, (9,)) for i, q in enumerate(queries))
    return EpisodeList(fold=0, shots=1, seed=seed, family="drawn", episodes=rows, shards_hash="h")


def test_draws_are_one_list_in_their_order() -> None:
    both = join_lists([drawn(0, 1, 2), drawn(1, 3, 1)])
    assert [(e.episode_id, e.query) for e in both] == [(0, 1), (1, 2), (2, 3), (3, 1)]
    assert len({both.sha256, drawn(0, 1, 2).sha256, join_lists([drawn(1, 3, 1), drawn(0, 1, 2)]).sha256}) == 3
    assert join_lists([drawn(0, 1, 2)]) == drawn(0, 1, 2)


def test_a_single_draw_is_the_evaluation_it_was() -> None:
    """Would catch: a new setting that makes every finished run be scored again."""
    assert eval_digest(EvalConfig()) == "f2458b0e"
    assert eval_digest(EvalConfig(draws=3)) != eval_digest(EvalConfig())
    with pytest.raises(ValueError, match=r"eval\.draws would be ignored"):
        EvalConfig(list="x", draws=2)
