"""The training stream: what it may show, in which proportion, and that its position is a value."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice, pairwise

import numpy as np
import pytest
from scipy.stats import chisquare

from fss_models.errors import FssError
from pipelines.data.plan import Block, StreamPlan
from pipelines.data.schema import EpisodeSample
from pipelines.data.shardset import Shards
from pipelines.data.stream import EpisodeStream, usable_blocks


def _blocks(*sizes: int, class_id: int = 0, start: int = 0) -> list[Block]:
    return [Block(class_id=class_id, file="f", row_group=start + i, bytes=100, rows=tuple(range(n)),
                  images=tuple(range(sum(sizes[:i]), sum(sizes[:i + 1])))) for i, n in enumerate(sizes)]


def _epoch(plan: StreamPlan, epoch: int) -> list:
    return [plan.episode(epoch, w, i) for w, window in enumerate(plan.windows(epoch)) for i in range(len(window))]


@pytest.mark.parametrize("sampler", ["natural", "balanced"])
@pytest.mark.parametrize("shots", [1, 3])
def test_every_query_support_pair_is_equally_likely(sampler: str, shots: int) -> None:
    """Would catch companions drawn without regard to block sizes, and blocks whose rows support only one another."""
    plan = StreamPlan(_blocks(5, 3, 2) + _blocks(4, class_id=1, start=3), shots=shots, targets=1, seed=3,
                      pool_bytes=10**6, sampler=sampler)
    pairs: Counter = Counter()
    for epoch in range(1500):
        for spec in _epoch(plan, epoch):
            if spec.class_id == 0:
                pairs.update((spec.targets[0], s) for s in spec.references[:1])
    places = [(b, r) for b, n in enumerate((5, 3, 2)) for r in range(n)]
    seen = [pairs[q, s] for q in places for s in places if q != s]
    assert sum(seen) == sum(pairs.values())  # never the query itself
    assert chisquare(seen).pvalue > 1e-3


def test_uneven_companions_would_fail_the_test_above() -> None:
    """The chi-square has the power to see the mistake it is there for."""
    plan = StreamPlan(_blocks(5, 3, 2), shots=1, targets=1, seed=3, pool_bytes=10**6, sampler="natural")
    rng = np.random.default_rng(0)
    plan._companion = lambda block, _: (int(rng.choice([b for b in range(3) if b != block])),)  # type: ignore[method-assign]
    pairs = Counter((s.targets[0], s.references[0]) for e in range(1500) for s in _epoch(plan, e))
    places = [(b, r) for b, n in enumerate((5, 3, 2)) for r in range(n)]
    assert chisquare([pairs[q, s] for q in places for s in places if q != s]).pvalue < 1e-6


def test_image_visits_every_photo_once_an_epoch() -> None:
    """Classes share photos 0 to 6: each is a query of one of its classes, in the long run of each as often."""
    plan = StreamPlan(_blocks(5, 3, 2) + _blocks(4, 3, class_id=1, start=3), shots=1, targets=1, seed=0, pool_bytes=600,
                      sampler="image")
    counts: Counter = Counter()
    for epoch in range(400):
        queries = [s.targets[0] for s in _epoch(plan, epoch)]
        photos = [plan.blocks[b].images[r] for b, r in queries]
        assert sorted(photos) == list(range(10))
        counts.update((p, plan.blocks[b].class_id) for p, (b, _) in zip(photos, queries, strict=True))
    assert all(150 < counts[p, c] < 250 for p in range(7) for c in (0, 1))


def test_natural_visits_every_annotation_once_an_epoch() -> None:
    plan = StreamPlan(_blocks(5, 3, 2), shots=2, targets=1, seed=0, pool_bytes=400)
    for epoch in range(5):
        queries = [s.targets[0] for s in _epoch(plan, epoch)]
        assert sorted(queries) == [(b, r) for b, n in enumerate((5, 3, 2)) for r in range(n)]


def test_balanced_gives_classes_the_same_share() -> None:
    plan = StreamPlan(_blocks(9, 9) + _blocks(2, class_id=1, start=2), shots=1, targets=1, seed=0, pool_bytes=10**6)
    assert Counter(s.class_id for s in _epoch(plan, 0)) == {0: 10, 1: 10}


def test_windows_stay_below_the_pool() -> None:
    blocks = [b for c in range(12) for b in _blocks(4, 4, 4, class_id=c)]
    plan = StreamPlan(blocks, shots=1, targets=1, seed=0, pool_bytes=1200)
    windows = plan.windows(0)
    assert len(windows) > 3
    for this, following in pairwise(windows):
        assert 100 * len(this.blocks | following.blocks) <= 1200


def test_a_pool_that_cannot_hold_two_windows_is_refused() -> None:
    with pytest.raises(FssError, match="at least 400"):
        StreamPlan(_blocks(5, 3, 2), shots=1, targets=1, seed=0, pool_bytes=399)


def test_few_photos_repeat_supports_but_never_the_query() -> None:
    plan = StreamPlan(_blocks(3), shots=5, targets=2, seed=0, pool_bytes=10**6)
    for spec in _epoch(plan, 0):
        assert len(spec.references) == 5
        assert len(spec.targets) == 2
        assert spec.targets[0] not in spec.references


def _key(batch: list[EpisodeSample]) -> list[tuple]:
    return [(s.class_id, [(r.image_id, int(r.mask.sum()), int(r.image.sum())) for r in (*s.references, *s.targets)])
            for s in batch]


def _stream(url: str, **over: object) -> EpisodeStream:
    shards = Shards(url)
    given = {"classes": shards.base_classes(0), "novel": set(shards.fold_classes(0)), "shots": 2, "targets": 1,
             "batch": 4, "seed": 5, "pool_bytes": 2_000_000, **over}
    return EpisodeStream(url, **given)


def test_a_resumed_stream_continues_identically(shapes_shards: str) -> None:
    """Would catch a position that runs ahead with the prefetch, or that loses its place between windows or epochs."""
    with _stream(shapes_shards, pool_bytes=130_000) as stream:
        assert len(stream.plan.windows(0)) > 2
        total = sum(len(w) for w in stream.plan.windows(0)) // 4 + 8  # into the second epoch
        expected, positions = [], []
        for batch in islice(stream, total):
            expected.append(_key(batch))
            positions.append(json.loads(json.dumps(stream.position)))
    for at in (0, 3, total // 2, total - 4):
        with _stream(shapes_shards, pool_bytes=130_000, position=positions[at]) as again:
            assert [_key(b) for b in islice(again, 3)] == expected[at + 1 : at + 4]


def test_two_ranks_share_the_batches_of_one(shapes_shards: str) -> None:
    with _stream(shapes_shards) as one, _stream(shapes_shards, rank=0, world=2) as a, _stream(
            shapes_shards, rank=1, world=2) as b:
        for _ in range(6):
            whole, left, right = _key(next(one)), _key(next(a)), _key(next(b))
            assert whole[0::2] == left
            assert whole[1::2] == right


def test_photos_with_a_novel_class_are_dropped(shapes_shards: str) -> None:
    shards = Shards(shapes_shards)
    novel = set(shards.fold_classes(0))
    shown = {i for i, row in shards.rows.items() if novel & set(row["class_ids"])}
    kept = {i for b in usable_blocks(shards, shards.base_classes(0), set()) for i in b.rows}
    assert kept  # otherwise the next lines prove nothing
    for avoid, expect in ((novel, False), (set(), True)):
        seen = set()
        by_place = {(b["file"], b["row_group"]): b["image_ids"] for b in shards.block_index.to_pylist()}
        for block in usable_blocks(shards, shards.base_classes(0), avoid):
            seen |= {by_place[block.file, block.row_group][r] for r in block.rows}
        assert bool(seen & shown) is expect
        assert not {shards.rows[i]["split"] for i in seen} - {"train"}


def test_samples_are_decoded_with_their_masks(shapes_shards: str) -> None:
    with _stream(shapes_shards) as stream:
        for sample in (s for batch in islice(stream, 3) for s in batch):
            for one in (*sample.references, *sample.targets):
                assert one.image.shape == (96, 96, 3)
                assert one.mask.shape == one.ignore.shape == (96, 96)
                assert one.mask.any()
            assert sample.targets[0].image_id not in {r.image_id for r in sample.references}


def test_a_position_of_another_stream_is_refused(shapes_shards: str) -> None:
    with _stream(shapes_shards) as stream:
        next(stream)
        position = stream.position
    with pytest.raises(FssError, match="another dataset"):
        _stream(shapes_shards, seed=6, position=position)


def test_a_batch_that_ranks_cannot_share_is_refused(shapes_shards: str) -> None:
    with pytest.raises(FssError, match="multiple"):
        _stream(shapes_shards, batch=3, world=2)


def test_a_damaged_block_reaches_the_reader(shapes_shards: str, tmp_path) -> None:
    """Would catch a producer that dies silently and leaves training waiting for ever."""
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(shapes_shards, copy)
    for file in (copy / "blocks" / "train").glob("class-*.parquet"):
        file.write_bytes(b"no parquet")
    stream = _stream(str(copy))
    with pytest.raises(Exception, match=r"[Pp]arquet"):
        next(stream)
    stream.close()
