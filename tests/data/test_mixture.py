"""Several datasets in one stream: their shares, and that position and ranks do not matter."""

from __future__ import annotations

import json
from contextlib import closing
from functools import partial
from itertools import islice
from typing import Any

import pytest

from fss_models.errors import FssError
from pipelines.data.mixture import MixedStream
from pipelines.data.shardset import Shards
from pipelines.data.stream import EpisodeStream

WEIGHTS = [0.7, 0.3]


def open_part(url: str, classes: list[int], rank: int, world: int, position: Any) -> EpisodeStream:
    return EpisodeStream(url, classes=classes, batch=world, seed=5, rank=rank, world=world, position=position)


def mixed(url: str, *, rank: int = 0, world: int = 1, position: Any = None) -> MixedStream:
    """The shards' first half of classes as one dataset, the rest as another."""
    ids = sorted(Shards(url).classes)
    halves = [ids[: len(ids) // 2], ids[len(ids) // 2 :]]
    parts = [partial(open_part, url, half, rank, world) for half in halves]
    return MixedStream(parts, WEIGHTS, batch=4, seed=1, world=world, position=position)


def key(sample: Any) -> tuple[int, ...]:
    return (sample.class_id, *(s.image_id for s in (*sample.references, *sample.targets)))


def test_each_dataset_has_its_share(shapes_shards: str) -> None:
    ids = sorted(Shards(shapes_shards).classes)
    with closing(mixed(shapes_shards)) as stream:
        classes = [s.class_id for batch in islice(stream, 150) for s in batch]
    share = sum(c in ids[: len(ids) // 2] for c in classes) / len(classes)
    assert abs(share - 0.7) < 0.06  # three standard deviations of 600 draws


def test_a_position_goes_on_where_it_was(shapes_shards: str) -> None:
    with closing(mixed(shapes_shards)) as stream:
        batches = [[key(s) for s in batch] for batch in islice(stream, 5)]
        position = json.loads(json.dumps(stream.position))
        following = [[key(s) for s in batch] for batch in islice(stream, 3)]
    with closing(mixed(shapes_shards, position=position)) as again:
        assert [[key(s) for s in batch] for batch in islice(again, 3)] == following
    assert len({k for batch in batches for k in batch}) > 5


def test_ranks_share_a_batch_without_repeats(shapes_shards: str) -> None:
    found, positions = [], []
    for rank in range(2):
        with closing(mixed(shapes_shards, rank=rank, world=2)) as stream:
            found.append([[key(s) for s in batch] for batch in islice(stream, 6)])
            positions.append(stream.position)
    assert positions[0] == positions[1]
    assert all(len(batch) == 2 for one in found for batch in one)
    assert [[k[0] for k in b] for b in found[0]] != [] != found[1]
    assert not {k for b in found[0] for k in b} & {k for b in found[1] for k in b}


def test_a_position_of_another_mixture_is_refused(shapes_shards: str) -> None:
    with pytest.raises(FssError, match="another mixture"):
        mixed(shapes_shards, position={"step": 1, "parts": [None]})
