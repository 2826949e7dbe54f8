"""Shared by all published samplers: how they draw one item, and the episodes that they return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from fss_models.errors import FssError

T = TypeVar("T")
Pools = Mapping[int, Sequence[str]]  # class id -> names of its images, in the order of the list


@dataclass(frozen=True)
class NamedEpisode:
    """One episode, with photo names as in the family's lists. `class_id` counts from 0 over the whole benchmark."""

    class_id: int
    query: str
    supports: tuple[str, ...]


def pick(rng: np.random.RandomState, items: Sequence[T]) -> T:
    """Draw one item as the loaders do: they permute the whole list, so later draws depend on its length."""
    return items[int(rng.choice(len(items), 1, replace=False)[0])]


def supports_of(rng: np.random.RandomState, pool: Sequence[str], query: str, shots: int) -> tuple[str, ...]:
    """Draw K supports. A draw that equals the query is repeated; supports may equal each other."""
    found: list[str] = []
    while len(found) < shots:
        name = pick(rng, pool)
        if name != query:
            found.append(name)
    return tuple(found)


def check_pools(pools: Pools, classes: Sequence[int], at_least: int) -> None:
    """Raise `FssError` for a class with fewer than `at_least` images, for which the published loaders never end."""
    if not classes:
        raise FssError("the fold has no class to draw from")
    for class_id in classes:
        distinct = len(set(pools.get(class_id, ())))
        if distinct < at_least:
            raise FssError(f"class {class_id} has {distinct} images to draw from, {at_least} are needed",
                           hint="lower --shots, or give the full lists")
