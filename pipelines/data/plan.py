"""The episodes of a training stream and their order: a pure function of (blocks, seed, epoch).

An epoch visits blocks in a random order. The visits are cut into windows whose blocks fit half of the pool, because the
next window loads while one is used. Each row of a visit is a query once. The queries of a window are shuffled, so
batches mix its classes.

The query is in block b, which has n_b of the class's N rows. Each support is from b with probability
(n_b - 1)/(N - 1), else from the companion of the visit: another block of the class, drawn with probability proportional
to its rows. Blocks with fewer rows than an episode needs are grouped and drawn as one. So the marginal of every (query,
support) pair is exactly uniform, and no photo repeats if the class has enough. Joint draws of K supports stay
correlated, because they come from few blocks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

from fss_models.errors import FssError
from pipelines.data.sources.base import digest_of

Sampler = Literal["balanced", "natural", "image"]
Place = tuple[int, int]  # (number of the block in the plan, row within the block)


@dataclass(frozen=True, kw_only=True)
class Block:
    """One row group and the rows of it that may be used.

    bytes: image bytes of the whole group; images: the image id of each of `rows`.
    """

    class_id: int
    file: str
    row_group: int
    bytes: int
    rows: tuple[int, ...]
    images: tuple[int, ...]


class Visit(NamedTuple):
    """The rows of a block that are queries, and the blocks of the supports that are not from `block`.

    `companions` is empty if the class has no other block.
    """

    block: int
    rows: tuple[int, ...]
    companions: tuple[int, ...]

    @property
    def blocks(self) -> tuple[int, ...]:
        """All blocks that the visit reads."""
        return (self.block, *self.companions)


@dataclass(frozen=True)
class Window:
    """Visits whose blocks are in memory at the same time."""

    visits: tuple[Visit, ...]

    @property
    def blocks(self) -> set[int]:
        """All blocks that the window reads."""
        return {b for v in self.visits for b in v.blocks}

    def __len__(self) -> int:
        return sum(len(v.rows) for v in self.visits)


class EpisodePlan(NamedTuple):
    """One episode as places of its photos. The first of `targets` is the query."""

    class_id: int
    references: tuple[Place, ...]
    targets: tuple[Place, ...]


class StreamPlan:
    """The episodes of a stream. Raises `FssError` if no class has two usable photos or the pool is too small.

    sampler: `balanced` gives every class the same number of queries per epoch, so photos of rare classes come more
    often. `natural` makes every annotation a query exactly once per epoch. `image` makes every photo a query once per
    epoch, with one of its classes at random (as the loaders over BAM's lists do).
    """

    def __init__(
        self, blocks: Sequence[Block], *, shots: int, targets: int, seed: int, pool_bytes: int,
        sampler: Sampler = "balanced",
    ) -> None:
        by_class: dict[int, list[int]] = defaultdict(list)
        for number, block in enumerate(blocks):
            if block.rows:
                by_class[block.class_id].append(number)
        sizes = {c: sum(len(blocks[b].rows) for b in found) for c, found in by_class.items()}
        self.blocks = list(blocks)
        self.by_class = {c: by_class[c] for c in sorted(sizes) if sizes[c] >= 2}
        self.sizes = {c: sizes[c] for c in self.by_class}
        self.shots, self.targets, self.seed, self.sampler = shots, targets, seed, sampler
        self._more = shots + targets - 1  # rows of an episode apart from its query
        self._by_image = _places_by_image(self.blocks, self.by_class)
        self._budget = pool_bytes // 2
        self._check(pool_bytes)
        self.fingerprint = digest_of(self.blocks, shots, targets, seed, self._budget, sampler)[:16]
        self.windows = lru_cache(maxsize=2)(self._windows)
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def _check(self, pool_bytes: int) -> None:
        if not self.by_class:
            raise FssError("no class has two training photos that may be used",
                           hint="add photos, or set train.novel_images=keep")
        largest = max(self._most_bytes(found) for found in self.by_class.values())
        if largest > self._budget:
            raise FssError(f"train.pool_bytes={pool_bytes} is too small for two windows of {largest} bytes",
                           hint=f"set train.pool_bytes to at least {2 * largest}")

    def _most_bytes(self, numbers: Sequence[int]) -> int:
        """Largest image bytes of one visit to any of a class's blocks: the block and its companions."""
        sizes = {b: self.blocks[b].bytes for b in numbers}
        if all(len(self.blocks[b].rows) >= self._more for b in numbers):
            return sum(sorted(sizes.values(), reverse=True)[:2])
        return max(sizes[b] + max((sum(sizes[o] for o in group) for group in self._groups(b)), default=0)
                   for b in numbers)

    # ---- an epoch -------------------------------------------------------------------------------------------------

    def _windows(self, epoch: int) -> list[Window]:
        rng = np.random.default_rng([self.seed, epoch])
        once = self._one_class_each(epoch) if self.sampler == "image" else None
        visits = [v for c in self.by_class for v in self._visits(c, rng, once)]
        windows: list[list[Visit]] = [[]]
        resident: set[int] = set()
        for i in rng.permutation(len(visits)):
            need = set(visits[i].blocks)
            if windows[-1] and sum(self.blocks[b].bytes for b in resident | need) > self._budget:
                windows.append([])
                resident = set()
            windows[-1].append(visits[i])
            resident |= need
        return [Window(tuple(w)) for w in windows]

    def _one_class_each(self, epoch: int) -> set[Place]:
        """One random place of every photo: the class with which the photo is a query in this epoch."""
        rng = np.random.default_rng([self.seed, epoch, 3])
        return {found[rng.integers(len(found))] for _, found in sorted(self._by_image.items())}

    def weights(self) -> dict[Place, float]:
        """Place -> the probability that it is the query of an episode."""
        if self.sampler == "image":
            each = 1 / len(self._by_image)
            return {place: each / len(found) for found in self._by_image.values() for place in found}
        classes, total = len(self.sizes), sum(self.sizes.values())
        even = self.sampler == "balanced"
        return {(b, r): 1 / (classes * self.sizes[c]) if even else 1 / total
                for c, found in self.by_class.items() for b in found for r in self.blocks[b].rows}

    def _visits(self, class_id: int, rng: np.random.Generator, once: set[Place] | None) -> list[Visit]:
        """The visits of one class in an epoch.

        The N rows of its blocks form a circle, of which the epoch takes a run from a random start, so every row is
        equally likely. With `once` only these rows are queries, each one time.
        """
        circle = [(b, r) for b in rng.permutation(self.by_class[class_id])
                  for r in rng.permutation(self.blocks[b].rows)]
        if once is not None:
            circle = [place for place in circle if (int(place[0]), int(place[1])) in once]
        count = len(circle) if once is not None else self._queries(class_id)
        if not circle:
            return []
        start = 0 if count % len(circle) == 0 else int(rng.integers(len(circle)))
        runs: list[tuple[int, list[int]]] = []
        for i in range(start, start + count):
            block, row = circle[i % len(circle)]
            if not runs or runs[-1][0] != block or i % len(circle) == 0:
                runs.append((int(block), []))
            runs[-1][1].append(int(row))
        return [Visit(b, tuple(rows), self._companion(b, rng)) for b, rows in runs]

    def _queries(self, class_id: int) -> int:
        if self.sampler == "natural":
            return self.sizes[class_id]
        return -(-sum(self.sizes.values()) // len(self.sizes))

    def _companion(self, block: int, rng: np.random.Generator) -> tuple[int, ...]:
        groups = self._groups(block)
        if not groups:
            return ()
        rows = np.array([sum(len(self.blocks[b].rows) for b in group) for group in groups], dtype=np.float64)
        return groups[int(rng.choice(len(groups), p=rows / rows.sum()))]

    def _groups(self, block: int) -> list[tuple[int, ...]]:
        """The other blocks of the class, grouped so that each group has at least the rows that an episode needs."""
        groups: list[tuple[int, ...]] = []
        rows = self._more
        for b in (b for b in self.by_class[self.blocks[block].class_id] if b != block):
            if rows >= self._more:
                groups.append(())
                rows = 0
            groups[-1] = (*groups[-1], b)
            rows += len(self.blocks[b].rows)
        if len(groups) > 1 and rows < self._more:
            groups[-2:] = [groups[-2] + groups[-1]]
        return groups

    # ---- an episode -----------------------------------------------------------------------------------------------

    def _shuffled(self, epoch: int, window: int) -> list[tuple[int, int]]:
        """(visit, row) of every query of a window, in the order of the stream."""
        found = [(i, r) for i, v in enumerate(self.windows(epoch)[window].visits) for r in v.rows]
        order = np.random.default_rng([self.seed, epoch, window, 1]).permutation(len(found))
        return [found[i] for i in order]

    def episode(self, epoch: int, window: int, index: int) -> EpisodePlan:
        """Episode number `index` of a window."""
        number, row = self._order(epoch, window)[index]
        visit = self.windows(epoch)[window].visits[number]
        rng = np.random.default_rng([self.seed, epoch, window, 2, index])
        others = self._others(visit, row, self._more, rng)
        return EpisodePlan(self.blocks[visit.block].class_id, tuple(others[: self.shots]),
                           ((visit.block, row), *others[self.shots :]))

    def _others(self, visit: Visit, query: int, count: int, rng: np.random.Generator) -> list[Place]:
        """`count` different rows of the query's class, never the query. They repeat only if the class has too few."""
        own = [r for r in self.blocks[visit.block].rows if r != query]
        if not visit.companions:
            return [(visit.block, r) for r in _pick(own, count, rng)]
        far = self.sizes[self.blocks[visit.block].class_id] - 1 - len(own)
        if count <= len(own) + far:
            near = int(rng.hypergeometric(len(own), far, count))
        else:
            near = int(rng.binomial(count, len(own) / (len(own) + far)))
        places = [(visit.block, r) for r in _pick(own, near, rng)]
        rest = [(b, r) for b in visit.companions for r in self.blocks[b].rows]
        places += [rest[i] for i in _pick(range(len(rest)), count - near, rng)]
        return [places[i] for i in rng.permutation(count)]


def _places_by_image(blocks: Sequence[Block], by_class: dict[int, list[int]]) -> dict[int, list[Place]]:
    found: dict[int, list[Place]] = defaultdict(list)
    for b in (b for numbers in by_class.values() for b in numbers):
        for row, image in zip(blocks[b].rows, blocks[b].images, strict=True):
            found[image].append((b, row))
    return found


def _pick(rows: Sequence[int], count: int, rng: np.random.Generator) -> list[int]:
    return [int(r) for r in rng.choice(rows, count, replace=count > len(rows))] if count else []
