"""How often episodes show each class, query and (query, support) pair, against how often a published sampler would.

Counts are of cells: rows of a class in the order of their blocks, cut into at most `CELLS` runs, so that expected
counts are exact and a block that comes too often shows. Within an epoch draws are not independent (no query comes
twice; a run of queries shares the block of its supports), epochs are. So the chi-square statistic is judged by what it
becomes when the deviations of whole epochs change their signs at random, not by the table for independent draws.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipelines.data.plan import EpisodePlan, Place, StreamPlan

CELLS, LEAST, FLIPS = 16, 5.0, 4000  # cells a class; least expected count of one; random signs
Published = Literal["class_uniform", "pair_uniform", "image_uniform"]
PUBLISHED: dict[Published, str] = {
    "class_uniform": "class uniform over the fold, query and supports uniform over its list (HSNet's family on COCO)",
    "pair_uniform": "every (image, class) pair of the list equally often (HSNet on PASCAL)",
    "image_uniform": "every photo of the list equally often, its class uniform among those it shows (BAM's family)",
}
SAMPLERS: dict[str, Published] = {"balanced": "class_uniform", "natural": "pair_uniform", "image": "image_uniform"}
Pools = Mapping[int, Sequence[Place]]  # class -> its rows, in the order of their blocks


@dataclass(frozen=True)
class CountTable:
    """One distribution: expected and drawn counts of its cells, and the test of their difference.

    `spread`: how many times the counts' variance from epoch to epoch is that of independent draws.
    """

    expected: np.ndarray
    drawn: np.ndarray
    statistic: float
    pvalue: float
    spread: float

    @staticmethod
    def of(counts: np.ndarray, shares: np.ndarray) -> CountTable:
        """counts [E, C] of E epochs, shares [C] expected; cells expected less than `LEAST` times in all are one."""
        expected, drawn = shares * counts.sum(), counts.sum(axis=0)
        few = expected < LEAST
        counts, shares = (np.concatenate([a[..., ~few], a[..., few].sum(-1, keepdims=True)], axis=-1)
                          for a in (counts, shares))
        away = counts - counts.sum(axis=1, keepdims=True) * shares
        used = shares > 0
        gram = (away[:, used] / (shares[used] * counts.sum())) @ away[:, used].T
        signs = np.random.default_rng(0).choice([-1.0, 1.0], (FLIPS, len(counts)))
        flipped = np.einsum("fe,eg,fg->f", signs, gram, signs)
        statistic = float(gram.sum())
        beyond = (flipped >= statistic - 1e-9).sum()
        return CountTable(expected=expected, drawn=drawn, statistic=statistic, pvalue=float((beyond + 1) / (FLIPS + 1)),
                          spread=float(np.trace(gram) / max(used.sum() - 1, 1)))

    @property
    def distance(self) -> float:
        """Total variation between the drawn and the expected distribution."""
        return float(abs(self.drawn - self.expected).sum() / self.drawn.sum() / 2)


@dataclass(frozen=True)
class Marginals:
    """Three distributions, and how often two supports of an episode are from one block (None: a single support)."""

    episodes: int
    epochs: int
    classes: list[int]
    by_class: CountTable
    by_query: CountTable
    by_pair: CountTable
    same_block: float | None
    same_block_independent: float | None


def pools_of(plan: StreamPlan) -> dict[int, list[Place]]:
    """The rows of each class of a plan."""
    return {c: [(b, r) for b in found for r in plan.blocks[b].rows] for c, found in plan.by_class.items()}


def epochs_of(plan: StreamPlan, count: int) -> Iterator[Iterator[EpisodePlan]]:
    """The first epochs of a stream, from its plan alone: nothing is read or decoded."""
    for epoch in range(count):
        yield (plan.spec(epoch, w, i) for w, window in enumerate(plan.windows(epoch)) for i in range(len(window)))


def marginals(epochs: Iterable[Iterable[EpisodePlan]], pools: Pools, weights: Mapping[Place, float]) -> Marginals:
    """Count episodes over the rows of `pools` and compare with the published sampler's `weights` of queries.

    Supports are uniform among the class's others. The pairs are those of the query and the first support.
    """
    cell = {c: _cells(pool) for c, pool in pools.items()}
    shares = _shares(pools, cell, weights)
    at = [{key: i for i, key in enumerate(one)} for one in shares]
    sizes = {c: Counter(b for b, _ in pool) for c, pool in pools.items()}
    counts: list[list[np.ndarray]] = [[], [], []]
    same: list[tuple[bool, float]] = []
    for epoch in epochs:
        now = [np.zeros(len(one)) for one in shares]
        for spec in epoch:
            c, query, support = spec.class_id, spec.targets[0], spec.references[0]
            a, b = cell[c][query], cell[c][support]
            for i, key in enumerate(((c,), (c, a), (c, a, b))):
                now[i][at[i][key]] += 1
            if len(spec.references) > 1 and len(pools[c]) > 2:
                same.append((spec.references[0][0] == spec.references[1][0], _independent(sizes[c], query[0])))
        for total, one in zip(counts, now, strict=True):
            total.append(one)
    tables = [CountTable.of(np.stack(n), np.array(list(s.values()))) for n, s in zip(counts, shares, strict=True)]
    measured = np.mean(same, axis=0) if same else None
    return Marginals(
        episodes=int(tables[0].drawn.sum()), epochs=len(counts[0]), classes=sorted(pools), by_class=tables[0],
        by_query=tables[1], by_pair=tables[2], same_block=None if measured is None else float(measured[0]),
        same_block_independent=None if measured is None else float(measured[1]))


def statement(found: Marginals, published: Published) -> list[str]:
    """What the figures say, in sentences."""
    lines = [f"{found.episodes} episodes ({found.epochs} epochs) of {len(found.classes)} classes against: "
             f"{PUBLISHED[published]}."]
    for name, table in (("class", found.by_class), ("query", found.by_query), ("(query, support)", found.by_pair)):
        lines.append(f"{name}: chi-square {table.statistic:.1f} over {len(table.drawn)} cells, p = {table.pvalue:.3f}; "
                     f"the counts vary {table.spread:.2f} times as much as those of independent draws.")
    if found.same_block is not None and found.same_block_independent is not None:
        more = found.same_block > found.same_block_independent + 0.005
        why = ("The supports of one episode are correlated, as they come from two blocks; the marginal of each pair is "
               "not touched by it." if more else "Here blocks make the supports of one episode no more alike.")
        lines.append(f"Two supports of an episode are from the same block in {found.same_block:.1%} of the episodes; "
                     f"supports drawn independently would be in {found.same_block_independent:.1%}. {why}")
    return lines


def _cells(pool: Sequence[Place]) -> dict[Place, int]:
    count = min(len(pool), CELLS)
    return {place: i * count // len(pool) for i, place in enumerate(pool)}


def _shares(
    pools: Pools, cell: Mapping[int, Mapping[Place, int]], weights: Mapping[Place, float]
) -> tuple[dict[tuple[int, ...], float], ...]:
    """Probabilities of classes, of queries and of pairs (support uniform among the others)."""
    classes: dict[tuple[int, ...], float] = {}
    queries: dict[tuple[int, ...], float] = {}
    pairs: dict[tuple[int, ...], float] = {}
    for c, pool in sorted(pools.items()):
        rows, n = Counter(cell[c].values()), len(pool)
        classes[c,] = sum(weights[place] for place in pool)
        for a in sorted(rows):
            queries[c, a] = sum(weights[place] for place in pool if cell[c][place] == a)
            for b in sorted(rows):
                pairs[c, a, b] = queries[c, a] * (rows[b] - (a == b)) / (n - 1)
    return classes, queries, pairs


def _independent(sizes: Mapping[int, int], own: int) -> float:
    """P(two different photos of the class, neither the query, are of one block), drawn uniformly."""
    left = sum(sizes.values()) - 1
    return sum((n - (b == own)) * (n - (b == own) - 1) for b, n in sizes.items()) / (left * (left - 1))
