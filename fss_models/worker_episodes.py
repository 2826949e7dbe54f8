"""FSSAM's published episodes: the supports that the official loader draws for each query.

All are pure functions of a seed and of the lists. The official loader draws inside its worker processes, so episodes
depend on their number: worker w of W serves the list indices i with i mod W = w, in order, from a generator seeded
with the pass's base seed + w.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from fss_models.errors import FssError

SEED, WORKERS, EPISODES = 321, 32, 1000


@dataclass(frozen=True, kw_only=True)
class IndexedEpisode:
    """One episode as indices into the list of images, and the class id as it is in the labels.

    `supports` are in the order in which the official loader stacks them: the last drawn comes first.
    """

    query: int
    class_id: int
    supports: tuple[int, ...]


def draw_episode(
    rng: random.Random, query: int, present: Sequence[int], pools: Mapping[int, Sequence[int]], shots: int
) -> IndexedEpisode:
    """Draw one episode for the image `query`, whose label holds the classes `present` (of the phase, ascending).

    `pools[c]` lists the images filed under class c, in list order. Training draws in the same way. Raises `FssError`
    where the pool has too few other images (the official loop would never end) or no class is present.
    """
    if not present:
        raise FssError(f"image {query} holds no class of this phase")
    class_id = present[rng.randint(1, len(present)) - 1]
    pool = pools[class_id]
    if len(set(pool) - {query}) < shots:
        raise FssError(f"class {class_id} has {len(pool)} images, too few for {shots} shots beside the query {query}")
    chosen: list[int] = []
    for _ in range(shots):
        rng.randint(1, len(pool))  # the official loop always discards the first draw
        while True:
            at = rng.randint(1, len(pool)) - 1
            if pool[at] != query and at not in chosen:
                break
        chosen.append(at)
    return IndexedEpisode(query=query, class_id=class_id, supports=tuple(pool[at] for at in reversed(chosen)))


def published_episodes(
    present: Sequence[Sequence[int]], pools: Mapping[int, Sequence[int]], shots: int, *, episodes: int = EPISODES,
    workers: int = WORKERS, seed: int = SEED,
) -> list[IndexedEpisode]:
    """Draw the test episodes of the official evaluation in its order; the defaults are the released code's.

    `present[i]` are the novel classes in the label of list image i, ascending. The list is walked in order as often
    as it takes. Raises `FssError` as `draw_episode` does.
    """
    bases = base_seeds(seed)
    found: list[IndexedEpisode] = []
    while len(found) < episodes:
        base = next(bases)
        rngs = [random.Random(base + w) for w in range(workers)]
        walk = range(min(len(present), episodes - len(found)))
        found += [draw_episode(rngs[i % workers], i, present[i], pools, shots) for i in walk]
    return found


def base_seeds(seed: int) -> Iterator[int]:
    """Base seeds that a torch loader draws for its workers before each pass, after `torch.manual_seed(seed)`."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield int(torch.empty((), dtype=torch.int64).random_(generator=generator))
