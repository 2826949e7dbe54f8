"""Loaders over BAM's lists: VRP-SAM and FCP on PASCAL-5i, FSSAM on both.

Here the query is the list's next image and its class one of the fold's classes that its label shows at any size.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from fss_models.errors import FssError
from pipelines.data.samplers.draws import Draw, Pools, check_pools, supports_of

Listed = Sequence[tuple[str, Sequence[int]]]  # image, the fold's classes in its label, ascending


def two_generators(
    listed: Listed, pools: Pools, *, shots: int, episodes: int, seed: int
) -> list[Draw]:
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


def by_worker(
    listed: Listed, pools: Pools, *, shots: int, episodes: int, seed: int, workers: int
) -> list[Draw]:
    """FSSAM: passes over the list by `workers` loader workers, each with its own seed a pass.

    Worker w of a pass serves the images i with i mod workers = w from Python's generator seeded with the pass's seed
    + w; supports never repeat and come in reverse order (specification fssam sections 9 and 10). Raises `FssError`.
    """
    _check(listed, pools, shots + 1)
    found: list[Draw] = []
    for base in base_seeds(seed):
        found += _one_pass(listed, pools, shots, [random.Random(base + w) for w in range(workers)])
        if len(found) >= episodes:
            return found[:episodes]
    raise AssertionError("the seeds never end")


def base_seeds(seed: int) -> Iterator[int]:
    """The seeds torch's DataLoader gives to its passes, after `torch.manual_seed(seed)`."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield int(torch.empty((), dtype=torch.int64).random_(generator=generator))


def _one_pass(
    listed: Listed, pools: Pools, shots: int, generators: list[random.Random]
) -> Iterator[Draw]:
    for number, (name, present) in enumerate(listed):
        rng = generators[number % len(generators)]
        class_id = present[rng.randint(1, len(present)) - 1]
        yield Draw(class_id, name, tuple(reversed(_distinct(rng, pools[class_id], name, shots))))


def _distinct(rng: random.Random, pool: Sequence[str], query: str, shots: int) -> list[str]:
    """K different places of the pool, none the query's; the first draw of each is always thrown away."""
    taken: list[int] = []
    for _ in range(shots):
        rng.randint(1, len(pool))
        place = rng.randint(1, len(pool)) - 1
        while pool[place] == query or place in taken:
            place = rng.randint(1, len(pool)) - 1
        taken.append(place)
    return [pool[i] for i in taken]


def _check(listed: Listed, pools: Pools, at_least: int) -> None:
    bare = [name for name, present in listed if not present]
    if bare or not listed:
        raise FssError(f"{len(bare)} listed images show no class of the fold (first: {bare[0]})" if bare
                       else "the list has no images", mend="are the list and the masks of the same dataset?")
    check_pools(pools, sorted({c for _, present in listed for c in present}), at_least)
