"""Loaders over BAM's lists: VRP-SAM and FCP on PASCAL-5i, FSSAM on both.

Here the query is the list's next image and its class one of the fold's classes that its label shows at any size.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from fss_models.errors import FssError
from fss_models.worker_episodes import published_episodes
from pipelines.data.samplers.draws import Draw, Pools, check_pools, supports_of

Listed = Sequence[tuple[str, Sequence[int]]]  # image, the fold's classes in its label, ascending


def two_generators(listed: Listed, pools: Pools, *, shots: int, episodes: int, seed: int) -> list[Draw]:
    """VRP-SAM and FCP: the class from Python's generator, the supports from numpy's, both seeded once.

    (specification fcp_vrp section 6, datasets section 1). Raises `FssError`.
    """
    _check(listed, pools, 2)
    chooser, rng, found = random.Random(seed), np.random.RandomState(seed), []
    for number in range(episodes):
        name, present = listed[number % len(listed)]
        class_id = present[chooser.randint(1, len(present)) - 1]
        found.append(Draw(class_id, name, supports_of(rng, pools[class_id], name, shots)))
    return found


def by_worker(listed: Listed, pools: Pools, *, shots: int, episodes: int, seed: int, workers: int) -> list[Draw]:
    """FSSAM: passes over the list by `workers` loader workers, each with its own generator a pass; no support repeats.

    (specification fssam sections 9 and 10). Raises `FssError`.
    """
    _check(listed, pools, shots + 1)
    names = list(dict.fromkeys([n for n, _ in listed] + [n for pool in pools.values() for n in pool]))
    index = {name: i for i, name in enumerate(names)}
    numbered = {c: [index[n] for n in pool] for c, pool in pools.items()}
    drawn = published_episodes([present for _, present in listed], numbered, shots, episodes=episodes,
                               workers=workers, seed=seed)
    return [Draw(d.class_id, names[d.query], tuple(names[i] for i in d.supports)) for d in drawn]


def _check(listed: Listed, pools: Pools, at_least: int) -> None:
    bare = [name for name, present in listed if not present]
    if bare or not listed:
        raise FssError(f"{len(bare)} listed images show no class of the fold (first: {bare[0]})" if bare
                       else "the list has no images", mend="are the list and the masks of the same dataset?")
    check_pools(pools, sorted({c for _, present in listed for c in present}), at_least)
