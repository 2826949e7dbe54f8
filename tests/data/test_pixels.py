"""What the stream keeps decoded: made once, within its bound, the same pixels as without it."""

from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from fss_models.photo_files import decode_sized, decode_square
from fss_models.preprocess import Preprocessor, resize_mask
from pipelines.data import pixels
from pipelines.data.byte_cache import ByteCache
from pipelines.data.pixels import SampleReader, mirrors_exactly, square_mask
from pipelines.data.plan import StreamPlan
from pipelines.data.shardset import Shards
from pipelines.data.stream import EpisodeStream, _BlockPool, usable_blocks


def _tables(url: str) -> tuple[StreamPlan, dict]:
    shards = Shards(url)
    plan = StreamPlan(usable_blocks(shards, list(shards.classes), set()), shots=2, targets=1, seed=0, pool_bytes=10**8)
    return plan, _BlockPool(shards, plan, True).load(set(range(len(plan.blocks))), set())


def _places(plan: StreamPlan) -> list[tuple[int, int]]:
    return [(b, r) for b, block in enumerate(plan.blocks) for r in block.rows]


@pytest.mark.parametrize("limit", [0, 100_000, 10**9])
def test_samples_are_those_of_the_image_table(shapes_shards: str, limit: int) -> None:
    """Would catch masks or photos that one annotation takes from another's, and a cache that changes what comes out."""
    shards, (plan, tables) = Shards(shapes_shards), _tables(shapes_shards)
    reader = SampleReader(limit)
    for _ in range(2):
        for place in _places(plan)[::3]:
            (found,), expected = reader(tables, [place]), None
            expected = shards.sample(found.image_id, plan.blocks[place[0]].class_id)
            for name in ("image", "mask", "ignore"):
                assert np.array_equal(getattr(found, name), getattr(expected, name))
            assert reader.cached_bytes <= limit


def test_a_photo_is_decoded_once_though_many_ask(shapes_shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, tables = _tables(shapes_shards)
    seen, lock, decode = [], threading.Lock(), pixels.decode_sized

    def counted(data: bytes, *args: int, **limits: int) -> np.ndarray:
        with lock:
            seen.append(data)
        return decode(data, *args, **limits)

    monkeypatch.setattr(pixels, "decode_sized", counted)
    reader = SampleReader(10**9)
    with ThreadPoolExecutor(8) as pool:
        ids = {s.image_id for s in pool.map(lambda p: reader(tables, [p])[0], _places(plan) * 4)}
    assert len(seen) == len(ids) == len(set(seen))


def test_shared_arrays_cannot_be_written_to(shapes_shards: str) -> None:
    plan, tables = _tables(shapes_shards)
    sample = SampleReader(10**9)(tables, _places(plan)[:1])[0]
    for array in (sample.image, sample.mask, sample.ignore):
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 1


def test_a_failure_is_not_kept() -> None:
    kept = ByteCache(100)
    with pytest.raises(ZeroDivisionError):
        kept.get("a", lambda: (1 // 0, 1))
    assert kept.get("a", lambda: (7, 60)) == 7
    assert kept.get("b", lambda: (8, 60)) == 8
    assert kept.size == 60  # the older one made room
    assert kept.get("a", lambda: (9, 1)) == 9


def test_a_value_larger_than_the_cache_leaves_the_others() -> None:
    kept = ByteCache(100)
    assert kept.get("small", lambda: (1, 60)) == 1
    assert kept.get("large", lambda: (2, 101)) == 2
    assert kept.get("large", lambda: (3, 101)) == 3
    assert kept.get("small", lambda: (4, 60)) == 1
    assert kept.size == 60


@pytest.mark.parametrize("size", [(480, 640), (333, 500), (1200, 900)])
@pytest.mark.parametrize("side", [96, 512, 1024])
def test_a_square_gives_published_preprocessing_the_same_pixels(size: tuple[int, int], side: int) -> None:
    """Mirrored too: the stream resizes before the flip, the papers' code after it."""
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    prepare, small = Preprocessor(side=side), _square(image, side)
    assert torch.equal(prepare([image]).pixels, prepare([small]).pixels)
    mirrored = np.ascontiguousarray(image[:, ::-1])
    assert torch.equal(prepare([mirrored]).pixels, prepare([np.ascontiguousarray(small[:, ::-1])]).pixels)


def test_mirrored_squares_at_odd_sizes() -> None:
    """Photos: always. Masks: where `mirrors_exactly` says so, and only there."""
    rng, pairs = np.random.default_rng(0), set()
    for _ in range(150):
        width, side = int(rng.integers(2, 1500)), int(rng.choice([96, 256, 384, 473, 512, 640]))
        width = side * int(rng.integers(1, 4)) if rng.random() < 0.2 else width
        image = rng.integers(0, 256, (16, width, 3), dtype=np.uint8)
        mask = rng.random((16, width)) < 0.5
        assert np.array_equal(_square(image, side)[:, ::-1], _square(image[:, ::-1], side))
        small = square_mask(mask, side)
        assert np.array_equal(small, resize_mask(mask, side).numpy().astype(bool))
        by_columns = square_mask(np.asfortranarray(mask), side)
        assert np.array_equal(by_columns, small)
        assert by_columns.flags.c_contiguous
        same = np.array_equal(small[:, ::-1], square_mask(np.ascontiguousarray(mask[:, ::-1]), side))
        assert same or not mirrors_exactly(width, side)
        pairs.add((same, mirrors_exactly(width, side)))
    assert pairs == {(True, True), (False, False)}


def _square(image: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((side, side), Image.Resampling.BILINEAR))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "I;16", "P"])
def test_decoding_to_a_square_is_decoding_then_resizing(mode: str) -> None:
    values = np.random.default_rng(0).integers(0, 256, (40, 60, 4), dtype=np.uint8)
    picture = Image.fromarray(values).convert("RGB" if mode == "P" else "L" if mode == "I;16" else mode)
    if mode == "P":
        picture = picture.quantize(16)
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture).astype(np.uint16) * 257)
    out = io.BytesIO()
    picture.save(out, "PNG")
    whole = decode_sized(out.getvalue(), 40, 60)
    assert np.array_equal(decode_square(out.getvalue(), 40, 60, 32), _square(whole, 32))
    cut = decode_square(out.getvalue(), 40, 60, 32, crop=[5, 7, 41, 30])
    assert np.array_equal(cut, _square(whole[7:30, 5:41], 32))


@pytest.mark.parametrize("decode", [True, False])
def test_a_stream_of_squares_gives_the_same_episodes(shapes_shards: str, decode: bool) -> None:
    given = {"classes": list(Shards(shapes_shards).classes), "shots": 2, "batch": 4, "seed": 5, "decode": decode}
    with EpisodeStream(shapes_shards, **given) as whole, EpisodeStream(shapes_shards, side=64, **given) as small:
        for a, b in islice(zip(whole, small, strict=False), 5):
            for one, other in ((x, y) for e, f in zip(a, b, strict=True) for x, y in
                               zip((*e.references, *e.targets), (*f.references, *f.targets), strict=True)):
                assert other.image.shape == (64, 64, 3 if decode else 0)
                assert other.photo_size == one.photo_size == (96, 96)
                assert not decode or np.array_equal(_square(one.image, 64), other.image)
                assert np.array_equal(square_mask(one.mask, 64), other.mask)
                assert other.mask.shape == other.ignore.shape == (64, 64)
