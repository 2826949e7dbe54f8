"""The stream's marginals are the published samplers', its supports are correlated as stated, and the test can fail."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fss_models.errors import FssError
from jobs.cli import make_app
from pipelines.data.marginals import SAMPLERS, Marginals, epochs_of, measure_marginals, pools_of
from pipelines.data.plan import Block, EpisodePlan, StreamPlan
from pipelines.data.samplers.bam import two_generators
from pipelines.data.samplers.draws import NamedEpisode
from pipelines.data.samplers.hsnet import class_uniform, listed_pairs

SIZES = ((16, 16, 5), (5, 3, 2), (12,), (10, 10, 10, 3))
EPOCHS = 60


def _plan(sampler: str, shots: int = 2) -> StreamPlan:
    """Photo p is the p-th of every class that has so many: the first three show all four classes."""
    blocks = [Block(class_id=c, file="f", row_group=i, bytes=100, rows=tuple(range(n)),
                    images=tuple(range(sum(ns[:i]), sum(ns[:i + 1])))) for c, ns in enumerate(SIZES)
              for i, n in enumerate(ns)]
    return StreamPlan(blocks, shots=shots, targets=1, seed=1, pool_bytes=1200, sampler=sampler)


def _found(plan: StreamPlan) -> Marginals:
    return measure_marginals(epochs_of(plan, EPOCHS), pools_of(plan), plan.weights())


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
@pytest.mark.parametrize("shots", [1, 5])
def test_the_streams_marginals_are_the_published_ones(sampler: str, shots: int) -> None:
    """Would catch companions drawn without regard to block sizes and classes or photos that come too often."""
    found = _found(_plan(sampler, shots))
    for table in (found.by_class, found.by_query, found.by_pair):
        assert table.pvalue > 1e-3
        assert table.drawn.sum() == found.episodes
        assert np.isclose(table.expected.sum(), found.episodes)


def test_a_wrong_companion_would_fail() -> None:
    plan, rng = _plan("natural"), np.random.default_rng(0)
    plan._companion = lambda block, _: tuple(rng.permutation(  # type: ignore[method-assign]
        [b for b in plan.by_class[plan.blocks[block].class_id] if b != block])[:1].tolist())
    found = _found(plan)
    assert found.by_query.pvalue > 1e-3
    assert found.by_pair.pvalue < 2e-3


def test_small_blocks_neither_repeat_photos_nor_bend_the_marginals() -> None:
    """Would catch a companion of fewer rows than an episode takes."""
    for sizes in ((12, 12, 1), (9, 2, 2, 2, 9, 3)):
        blocks = [Block(class_id=0, file="f", row_group=i, bytes=100, rows=tuple(range(n)),
                        images=tuple(range(sum(sizes[:i]), sum(sizes[:i + 1])))) for i, n in enumerate(sizes)]
        plan = StreamPlan(blocks, shots=5, targets=2, seed=1, pool_bytes=1200)
        epochs = [list(epoch) for epoch in epochs_of(plan, 2 * EPOCHS)]
        assert all(len({*s.references, *s.targets}) == 7 for epoch in epochs for s in epoch)
        assert all(100 * len(w.blocks) <= 600 for w in plan.windows(0))
        assert measure_marginals(epochs, pools_of(plan), plan.weights()).by_pair.pvalue > 1e-3


def test_another_class_distribution_would_fail() -> None:
    plan = _plan("natural")
    for other in ("balanced", "image"):
        found = measure_marginals(epochs_of(plan, EPOCHS), pools_of(plan), _plan(other).weights())
        assert found.by_class.pvalue < 2e-3


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_the_published_samplers_pass_the_same_test(sampler: str) -> None:
    """The expected frequencies are those of the loaders themselves, whose draws are independent."""
    plan = _plan(sampler)
    pools = pools_of(plan)
    names = {c: [f"{c}/{b}/{r}" for b, r in places] for c, places in pools.items()}
    length = sum(len(p) for p in pools.values())
    count = {"shots": 2, "episodes": EPOCHS * length, "seed": 0}
    if sampler == "balanced":
        draws = class_uniform(names, list(names), **count)
    elif sampler == "natural":
        draws = listed_pairs([(n, c) for c, pool in names.items() for n in pool], **count)
    else:
        draws = _bam(pools, names, **count)
    found = measure_marginals(_batches(draws, length), pools, plan.weights())
    for table in (found.by_class, found.by_query, found.by_pair):
        assert table.pvalue > 1e-3
    if sampler == "balanced":
        assert all(0.7 < t.spread < 1.3 for t in (found.by_query, found.by_pair))


def _bam(pools: dict[int, list[tuple[int, int]]], names: dict[int, list[str]], **count: int) -> list[NamedEpisode]:
    """BAM's sampler over photos that show the classes whose pools are long enough."""
    photos = [(str(p), [c for c, pool in pools.items() if p < len(pool)]) for p in range(max(map(len, pools.values())))]
    draws = two_generators(photos, {c: [str(p) for p in range(len(pool))] for c, pool in pools.items()}, **count)
    return [NamedEpisode(d.class_id, names[d.class_id][int(d.query)],
                         tuple(names[d.class_id][int(s)] for s in d.supports)) for d in draws]


def _batches(draws: list[NamedEpisode], length: int) -> Iterator[list[EpisodePlan]]:
    specs = (EpisodePlan(d.class_id, tuple(_place(n) for n in d.supports), (_place(d.query),)) for d in draws)
    while batch := list(islice(specs, length)):
        yield batch


def _place(name: str) -> tuple[int, int]:
    _, block, row = map(int, name.split("/"))
    return block, row


def test_supports_share_blocks_more_often_than_independent_ones() -> None:
    """The figures of `describe_marginals`: independent draws do what the formula says, the stream does more."""
    plan, rng = _plan("balanced"), np.random.default_rng(0)
    pools, found = pools_of(plan), _found(plan)
    loose = []
    for spec in (s for epoch in epochs_of(plan, EPOCHS) for s in epoch):
        others = [p for p in pools[spec.class_id] if p != spec.targets[0]]
        chosen = tuple(others[i] for i in rng.choice(len(others), 2, replace=False))
        loose.append(EpisodePlan(spec.class_id, chosen, spec.targets))
    drawn = measure_marginals([loose], pools, plan.weights())
    assert drawn.same_block == pytest.approx(drawn.same_block_independent, abs=0.02)
    assert found.same_block_independent == pytest.approx(drawn.same_block_independent)
    assert found.same_block is not None
    assert found.same_block > drawn.same_block_independent + 0.1


def test_the_command_writes_a_page(shapes_shards: str, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "shapes").symlink_to(shapes_shards)
    given = ["data", "sampling", "--recipe", "debug", "--out", str(tmp_path), "--set", "data.name=shapes", "--json"]
    done = CliRunner().invoke(make_app(), [*given, "--fold", "1", "--epochs", "10"], catch_exceptions=False)
    facts = json.loads(done.stdout.splitlines()[0])
    assert facts["epochs"] == 10
    assert facts["tests"].keys() == {"class", "query", "pair"}
    assert all(t["p"] > 1e-3 for t in facts["tests"].values())
    page = Path(facts["page"]).read_text()
    assert "data:image/png;base64,iVBOR" in page
    assert all(line.split(":")[0] in page for line in facts["statement"])
    with pytest.raises(FssError, match="no fold 9"):
        CliRunner().invoke(make_app(), [*given, "--fold", "9"], catch_exceptions=False)
