"""Loaders over BAM's lists: VRP-SAM and FCP on PASCAL-5i, FSSAM on PASCAL-5i and COCO-20i.

The query is the next image of the list. Its class is one of the fold's classes in its label, at any size.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from fss_models.errors import FssError
from fss_models.worker_episodes import published_episodes
from pipelines.data.samplers.draws import NamedEpisode, Pools, check_pools, supports_of

Listed = Sequence[tuple[str, Sequence[int]]]  # image, the fold's classes in its label, ascending


def two_generators(listed: Listed, pools: Pools, *, shots: int, episodes: int, seed: int) -> list[NamedEpisode]:
    """VRP-SAM and FCP: the class from Python's generator, the supports from numpy's, both seeded once.

    Raises `FssError` for an image without a class of the fold and for a class with fewer than two images.
    """
    _check(listed, pools, 2)
    chooser, rng, found = random.Random(seed), np.random.RandomState(seed), []
    for number in range(episodes):
        name, present = listed[number % len(listed)]
        class_id = present[chooser.randint(1, len(present)) - 1]
        found.append(NamedEpisode(class_id, name, supports_of(rng, pools[class_id], name, shots)))
    return found


def by_worker(listed: Listed, pools: Pools, *, shots: int, episodes: int, seed: int,
              workers: int) -> list[NamedEpisode]:
    """FSSAM: passes over the list by `workers` loader workers, each with a generator of its own in every pass.

    Supports of an episode do not repeat. Raises `FssError` for an image without a class of the fold and for a class
    with fewer than K + 1 images.
    """
    _check(listed, pools, shots + 1)
    names = list(dict.fromkeys([n for n, _ in listed] + [n for pool in pools.values() for n in pool]))
    index = {name: i for i, name in enumerate(names)}
    numbered = {c: [index[n] for n in pool] for c, pool in pools.items()}
    drawn = published_episodes([present for _, present in listed], numbered, shots, episodes=episodes,
                               workers=workers, seed=seed)
    return [NamedEpisode(d.class_id, names[d.query], tuple(names[i] for i in d.supports)) for d in drawn]


def _check(listed: Listed, pools: Pools, at_least: int) -> None:
    bare = [name for name, present in listed if not present]
    if bare or not listed:
        raise FssError(f"{len(bare)} listed images show no class of the fold (first: {bare[0]})" if bare
                       else "the list has no images", hint="use a list and shards of the same dataset")
    check_pools(pools, sorted({c for _, present in listed for c in present}), at_least)
