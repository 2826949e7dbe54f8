"""Matcher's loaders of object parts, in which an image is the crop of one object, named `IMAGE#OBJECT`.

They follow the published code; no published list or golden episode was available to compare with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fss_models.errors import FssError
from pipelines.data.samplers.draws import NamedEpisode, Pools, check_pools, pick


@dataclass(frozen=True)
class PartObject:
    """One object of an image on which a part may be tested."""

    name: str  # IMAGE#OBJECT
    has_part: bool = True
    shown: bool = True  # False: its box is empty, which the loaders cannot crop


Objects = Mapping[tuple[int, str], Sequence[PartObject]]  # (class id, image) -> the objects of its kind in the image


def paco(
    pools: Pools, classes: Sequence[int], objects: Objects, *, shots: int, episodes: int, seed: int
) -> list[NamedEpisode]:
    """PACO-Part: class, image, then one object that has the part, all uniform. An empty box is drawn again.

    Supports are not from the query's image and may repeat. Raises `FssError` for a class with fewer than two images.
    """
    shown = {c: [i for i in pools.get(c, ()) if any(o.shown for o in objects[c, i])] for c in classes}
    check_pools(shown, classes, 2)
    rng, found = np.random.RandomState(seed), []
    for _ in range(episodes):
        class_id = pick(rng, classes)
        crops: list[str] = []
        image = ""
        while len(crops) < shots + 1:
            drawn = pick(rng, pools[class_id])
            if crops and drawn == image:
                continue
            chosen = pick(rng, objects[class_id, drawn])
            if chosen.shown:
                crops.append(chosen.name)
                image = image or drawn
        found.append(NamedEpisode(class_id, crops[0], tuple(crops[1:])))
    return found


def pascal_part(
    pools: Pools, classes: Sequence[int], objects: Objects, *, shots: int, episodes: int, seed: int
) -> list[NamedEpisode]:
    """Pascal-Part: episode idx tests class idx mod n; the image and one object of its kind in it are uniform.

    Both are drawn again if the object lacks the part or its box is empty. Query and supports are from different images.
    Raises `FssError` for a class with fewer than K + 1 images.
    """
    usable = {c: [i for i in pools.get(c, ()) if any(o.has_part and o.shown for o in objects[c, i])] for c in classes}
    check_pools(usable, classes, shots + 1)
    rng, found = np.random.RandomState(seed), []
    for number in range(episodes):
        class_id = classes[number % len(classes)]
        crops: dict[str, str] = {}  # image -> crop
        while len(crops) < shots + 1:
            image = pick(rng, pools[class_id])
            if image in crops:
                continue
            chosen = pick(rng, objects[class_id, image])
            if chosen.has_part and chosen.shown:
                crops[image] = chosen.name
        query, *supports = crops.values()
        found.append(NamedEpisode(class_id, query, tuple(supports)))
    return found


def part_entries(pools: Pools, most: int = 2500) -> int:
    """Number of episodes of a Pascal-Part fold: its (part, image) entries, at most 2500. Raises `FssError` for none."""
    entries = sum(len(names) for names in pools.values())
    if not entries:
        raise FssError("the fold has no part to test")
    return min(entries, most)
