"""How often episodes show each class, query and (query, support) pair, compared with a published sampler.

Counts are taken over cells: the rows of a class in the order of their blocks, cut into at most `CELLS` runs. Expected
counts of cells are exact, and a block that is drawn too often is visible. Draws within an epoch are not independent (no
query comes twice, and neighbouring queries share the block of their supports), but epochs are. So the p-value of the
chi-square statistic comes from random sign changes of the deviations of whole epochs, not from the table for
independent draws.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipelines.data.plan import EpisodePlan, Place, StreamPlan

CELLS, MIN_EXPECTED, FLIPS = 16, 5.0, 4000  # cells per class; least expected count of a cell; random sign changes
Published = Literal["class_uniform", "pair_uniform", "image_uniform"]
PUBLISHED: dict[Published, str] = {
    "class_uniform": "class uniform over the fold, query and supports uniform over its list (HSNet's family on COCO)",
    "pair_uniform": "every (image, class) pair of the list equally often (HSNet on PASCAL)",
    "image_uniform": "every photo of the list equally often, its class uniform among those it shows (BAM's family)",
}
SAMPLERS: dict[str, Published] = {"balanced": "class_uniform", "natural": "pair_uniform", "image": "image_uniform"}
Pools = Mapping[int, Sequence[Place]]  # class id -> its rows, in the order of their blocks


@dataclass(frozen=True)
class CountTable:
    """One distribution: expected and drawn counts of its cells, and the test of their difference.

    `spread`: variance of the counts from epoch to epoch, divided by the variance of independent draws.
    """

    expected: np.ndarray
    drawn: np.ndarray
    statistic: float
    pvalue: float
    spread: float

    @staticmethod
    def of(counts: np.ndarray, shares: np.ndarray) -> CountTable:
        """Compare counts [E, C] of E epochs and C cells with the expected shares [C].

        Cells with an expected total of less than `MIN_EXPECTED` are merged into one.
        """
        expected, drawn = shares * counts.sum(), counts.sum(axis=0)
        few = expected < MIN_EXPECTED
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
        """Total variation distance between the drawn and the expected distribution, 0 to 1."""
        return float(abs(self.drawn - self.expected).sum() / self.drawn.sum() / 2)


@dataclass(frozen=True)
class Marginals:
    """The distributions of classes, queries and (query, first support) pairs over some epochs.

    same_block: share of episodes whose first two supports are from one block; same_block_independent: the share for
    independent draws. Both are None if episodes have a single support.
    """

    episodes: int
    epochs: int
    classes: list[int]
    by_class: CountTable
    by_query: CountTable
    by_pair: CountTable
    same_block: float | None
    same_block_independent: float | None


def pools_of(plan: StreamPlan) -> dict[int, list[Place]]:
    """Class id -> the rows of the class in a plan, in the order of their blocks."""
    return {c: [(b, r) for b in found for r in plan.blocks[b].rows] for c, found in plan.by_class.items()}


def epochs_of(plan: StreamPlan, count: int) -> Iterator[Iterator[EpisodePlan]]:
    """The episodes of the first `count` epochs of a stream, from its plan alone: nothing is read or decoded."""
    for epoch in range(count):
        yield (plan.episode(epoch, w, i) for w, window in enumerate(plan.windows(epoch)) for i in range(len(window)))


def measure_marginals(epochs: Iterable[Iterable[EpisodePlan]], pools: Pools,
                      weights: Mapping[Place, float]) -> Marginals:
    """Count episodes over the rows of `pools` and compare them with a published sampler.

    `weights`: the sampler's probability of each row as a query. Its supports are uniform among the other rows of the
    class. Pairs consist of the query and the first support.
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


def describe_marginals(measured: Marginals, published: Published) -> list[str]:
    """The measured figures as sentences for a person."""
    lines = [f"{measured.episodes} episodes ({measured.epochs} epochs) of {len(measured.classes)} classes against: "
             f"{PUBLISHED[published]}."]
    for name, table in (("class", measured.by_class), ("query", measured.by_query),
                        ("(query, support)", measured.by_pair)):
        lines.append(f"{name}: chi-square {table.statistic:.1f} over {len(table.drawn)} cells, p = {table.pvalue:.3f}; "
                     f"the counts vary {table.spread:.2f} times as much as those of independent draws.")
    if measured.same_block is not None and measured.same_block_independent is not None:
        more = measured.same_block > measured.same_block_independent + 0.005
        why = ("The supports of one episode are correlated because they come from two blocks; the marginal of each "
               "pair stays uniform." if more else "Here blocks do not make the supports of one episode more alike.")
        lines.append(f"Two supports of an episode are from the same block in {measured.same_block:.1%} of the "
                     f"episodes; independent draws would give {measured.same_block_independent:.1%}. {why}")
    return lines


def _cells(pool: Sequence[Place]) -> dict[Place, int]:
    count = min(len(pool), CELLS)
    return {place: i * count // len(pool) for i, place in enumerate(pool)}


def _shares(
    pools: Pools, cell: Mapping[int, Mapping[Place, int]], weights: Mapping[Place, float]
) -> tuple[dict[tuple[int, ...], float], ...]:
    """The expected probability of each class, each cell of queries and each pair of cells (query, support)."""
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
    """Probability that two photos of the class are of one block, if they are drawn uniformly without the query.

    sizes: block -> its rows of the class; own: the block of the query.
    """
    left = sum(sizes.values()) - 1
    return sum((n - (b == own)) * (n - (b == own) - 1) for b, n in sizes.items()) / (left * (left - 1))
