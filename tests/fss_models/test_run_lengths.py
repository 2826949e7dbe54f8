"""Run lengths from low-resolution logits equal those of the enlarged and cut map byte for byte."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pycocotools import mask as coco

from fss_models import run_lengths
from fss_models.run_lengths import Rle, empty_mask, encode_logits, mask_area

Shape = tuple[int, int]


def enlarged(logits: np.ndarray, size: Shape, level: float, corners: bool) -> Rle:
    """The plain way: transposed as run lengths go, enlarged at once, cut, encoded."""
    turned = torch.from_numpy(np.ascontiguousarray(logits.T))[None, None]
    whole = F.interpolate(turned, size=size[::-1], mode="bilinear", align_corners=corners)[0, 0] > level
    return coco.encode(whole.numpy().T.view(np.uint8))


def smooth(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """A few objects with soft borders."""
    coarse = torch.from_numpy(rng.normal(size=(1, 1, 6, 6)).astype(np.float32)) * 4
    return F.interpolate(coarse, size=shape, mode="bicubic")[0, 0].numpy()


def noise(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def steps(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Whole numbers: many logits lie exactly at the level."""
    return np.round(2 * smooth(shape, rng))


def wide_range(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Logits of very different size side by side."""
    return (noise(shape, rng) * 10.0 ** rng.integers(-6, 6, shape)).astype(np.float32)


def flat(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """All of the photo lies at the level 0, apart from one row."""
    found = np.zeros(shape, dtype=np.float32)
    found[shape[0] // 2] = 1
    return found


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("make", [smooth, noise, steps, wide_range, flat])
def test_equal_to_the_whole_map(make: Callable[[Shape, np.random.Generator], np.ndarray], corners: bool) -> None:
    rng = np.random.default_rng(7)
    for shape, size in (((64, 64), (700, 610)), ((48, 40), (333, 1301)), ((9, 200), (640, 641)), ((2, 2), (650, 650)),
                        ((600, 64), (550, 800))):
        logits = make(shape, rng)
        for level in (0.0, 0.405):
            assert encode_logits(logits, size, level, corners=corners) == enlarged(logits, size, level, corners)


def test_twelve_megapixels_take_no_whole_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual mask is encoded without pixels: neither an enlarged map nor a mask of the photo's size is made."""
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a whole map")

    logits, size = smooth((128, 128), np.random.default_rng(3)), (3024, 4032)
    wanted = enlarged(logits, size, 0.0, False)
    monkeypatch.setattr(run_lengths, "enlarge", refuse)
    monkeypatch.setattr(run_lengths, "_by_strips", refuse)
    assert 0 < mask_area(wanted) < 3024 * 4032
    assert encode_logits(logits, size, 0.0) == wanted


@pytest.mark.parametrize("value", [5.0, -5.0, float("nan"), float("inf")])
def test_constant_and_broken_logits(value: float) -> None:
    logits = np.full((16, 16), value, dtype=np.float32)
    assert encode_logits(logits, (900, 800), 0.0) == enlarged(logits, (900, 800), 0.0, False)


def test_small_and_narrow_photos() -> None:
    rng = np.random.default_rng(1)
    for size in ((1, 1), (3, 5), (480, 640), (20_000, 30), (30, 20_000)):
        logits = noise((32, 32), rng)
        assert encode_logits(logits, size, 0.1) == enlarged(logits, size, 0.1, False)


def test_an_empty_mask() -> None:
    assert empty_mask((4, 7)) == coco.encode(np.zeros((4, 7), dtype=np.uint8, order="F"))
