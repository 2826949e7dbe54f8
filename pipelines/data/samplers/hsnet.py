"""HSNet's test loaders, which VRP-SAM, FCP, Matcher and GF-SAM use too.

All raise `FssError` for a class with fewer than two images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipelines.data.samplers.draws import NamedEpisode, Pools, check_pools, pick, supports_of


def listed_pairs(pairs: Sequence[tuple[str, int]], *, shots: int, episodes: int, seed: int) -> list[NamedEpisode]:
    """PASCAL-5i: episode idx is pair idx mod length, in list order. Only the supports are random."""
    pools: dict[int, list[str]] = {}
    for name, class_id in pairs:
        pools.setdefault(class_id, []).append(name)
    check_pools(pools, sorted(pools), 2)
    rng, found = np.random.RandomState(seed), []
    for number in range(episodes):
        name, class_id = pairs[number % len(pairs)]
        found.append(NamedEpisode(class_id, name, supports_of(rng, pools[class_id], name, shots)))
    return found


def class_uniform(
    pools: Pools, classes: Sequence[int], *, shots: int, episodes: int, seed: int
) -> list[NamedEpisode]:
    """COCO-20i: the class is uniform over the fold, query and supports are uniform over the list of the class."""
    check_pools(pools, classes, 2)
    rng = np.random.RandomState(seed)
    return [_uniform(rng, pools, pick(rng, classes), shots) for _ in range(episodes)]


def class_cycled(
    pools: Pools, classes: Sequence[int], *, shots: int, episodes: int, seed: int
) -> list[NamedEpisode]:
    """LVIS-92i and the cross-domain sets: episode idx tests class idx mod n; query and supports are uniform."""
    check_pools(pools, classes, 2)
    rng = np.random.RandomState(seed)
    return [_uniform(rng, pools, classes[number % len(classes)], shots) for number in range(episodes)]


def _uniform(rng: np.random.RandomState, pools: Pools, class_id: int, shots: int) -> NamedEpisode:
    query = pick(rng, pools[class_id])
    return NamedEpisode(class_id, query, supports_of(rng, pools[class_id], query, shots))


def every_image(pools: Pools, *, shots: int, seed: int) -> list[NamedEpisode]:
    """FSS-1000: each image is a query once, in path order (1, 10, 2, ...); supports are uniform over its class.

    `pools`: class id -> its images in the order of their numbers 1 to 10.
    """
    check_pools(pools, sorted(pools), 2)
    rng = np.random.RandomState(seed)
    return [NamedEpisode(class_id, query, supports_of(rng, pools[class_id], query, shots))
            for class_id in sorted(pools) for query in sorted(pools[class_id])]
