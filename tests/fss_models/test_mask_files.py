"""The mask reader: pictures as people save them, made here, and the pixels that have to come out."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from fss_models.errors import BadImage
from fss_models.mask_files import read_mask_picture

HEIGHT, WIDTH = 60, 80
VOC = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]


def box(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


ONE, TWO, RIM = box(10, 10, 40, 30), box(50, 20, 70, 50), box(8, 8, 42, 32) & ~box(10, 10, 40, 30)
BOTH, BAND = ONE | TWO, box(4, 4, 46, 36) & ~ONE


def levels(*regions: tuple[np.ndarray, int], ground: int = 0, dtype: Any = np.uint8) -> np.ndarray:
    """An array of levels: each region's level over the ones before."""
    found = np.full((HEIGHT, WIDTH), ground, dtype=dtype)
    for region, level in regions:
        found[region] = level
    return found


def colours(*regions: tuple[np.ndarray, tuple[int, ...]], ground: tuple[int, ...] = (0, 0, 0)) -> np.ndarray:
    return np.dstack([levels(*((m, c[i]) for m, c in regions), ground=ground[i]) for i in range(len(ground))])


def saved(picture: np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def palette(index: np.ndarray, colour_list: list[int], **options: Any) -> bytes:
    image = Image.fromarray(index)
    image.putpalette(colour_list)
    return saved(image, **options)


def circle(factor: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Grey levels [H, W] of a smooth circle, and the pixels that it covers by half and more."""
    large = Image.new("L", (WIDTH * factor, HEIGHT * factor))
    ImageDraw.Draw(large).ellipse([20 * factor, 10 * factor, 60 * factor, 50 * factor], fill=255)
    grey = np.array(large.resize((WIDTH, HEIGHT), Image.Resampling.BOX))
    return grey, grey >= 128


def voc_palette() -> list[int]:
    found = (VOC + [60, 60, 60] * 256)[: 255 * 3]
    return [*found, 224, 224, 192]


SMOOTH, COVERED = circle()
READS = {
    "0 and 255": (saved(levels((ONE, 255))), ONE),
    "0 and 1": (saved(levels((ONE, 1))), ONE),
    "bits": (saved(Image.fromarray(ONE)), ONE),
    "one dark grey": (saved(levels((ONE, 76))), ONE),
    "16 bits": (saved(levels((ONE, 65535), dtype=np.uint16)), ONE),
    "16 bits, numbers of instances": (saved(levels((ONE, 26001), (TWO, 26002), dtype=np.uint16)), BOTH),
    "not quite black and white": (saved(levels((ONE, 235), ground=16)), ONE),
    "shares": (saved(levels((ONE, 1.0), (RIM, 0.3), dtype=np.float32), "TIFF"), ONE),
    "instances 1, 2": (saved(levels((ONE, 1), (TWO, 2))), BOTH),
    "instances over the greys": (saved(levels((ONE, 85), (TWO, 170))), BOTH),
    "instances up to white": (saved(levels((ONE, 50), (TWO, 255))), BOTH),
    "instances that touch": (saved(levels((box(10, 10, 40, 30), 100), (box(40, 10, 70, 30), 200))),
                             box(10, 10, 70, 30)),
    "numbers and void": (saved(levels((RIM, 255), (ONE, 1), (TWO, 2))), BOTH),
    "a large number and its rim of void": (saved(levels((RIM, 255), (ONE, 61))), ONE),
    "trimap": (saved(levels((BAND, 128), (ONE, 255))), ONE),
    "smooth edge": (saved(SMOOTH), COVERED),
    "smooth edge, 16 bits": (saved(SMOOTH.astype(np.uint16) * 257), COVERED),
    "smooth edge in colour": (saved(np.dstack([SMOOTH, SMOOTH // 2, SMOOTH * 0])), COVERED),
    "smooth edge in a palette of greys": (saved(Image.fromarray(SMOOTH).convert("P")), COVERED),
    "smooth edge of alpha": (saved(np.dstack([SMOOTH * 0 + 255, SMOOTH])), COVERED),
    "VOC's palette": (palette(levels((ONE, 1)), voc_palette()), ONE),
    "VOC's palette with void": (palette(levels((RIM, 255), (ONE, 1), (TWO, 3)), voc_palette()), BOTH),
    "VOC's colours with void": (saved(colours((RIM, (224, 224, 192)), (ONE, (128, 0, 0)), (TWO, (0, 0, 128)))), BOTH),
    "index 255 alone": (palette(levels((ONE, 255)), voc_palette()), ONE),
    "palette without black": (palette(levels((ONE, 1)), [255, 255, 255, 200, 0, 0]), ONE),
    "palette with white first": (palette(levels((~ONE, 1)), [255, 255, 255, 0, 0, 0]), ONE),
    "palette of red and black, red first": (palette(levels((~ONE, 1)), [255, 0, 0, 0, 0, 0]), ONE),
    "palette of a transparent ground": (palette(levels((ONE, 1)), [255, 255, 255, 255, 0, 0], transparency=0), ONE),
    "palette that is all black": (palette(levels((ONE, 1)), [0, 0, 0, 0, 0, 0]), ONE),
    "GIF": (saved(levels((ONE, 255)), "GIF"), ONE),
    "red": (saved(colours((ONE, (255, 0, 0)))), ONE),
    "colours of instances": (saved(colours((ONE, (255, 0, 0)), (TWO, (0, 20, 0)))), BOTH),
    "white in RGB": (saved(colours((ONE, (255, 255, 255)))), ONE),
    "white where opaque": (saved(colours((ONE, (255, 255, 255, 255)), ground=(255, 255, 255, 0))), ONE),
    "black where opaque": (saved(colours((ONE, (0, 0, 0, 255)), ground=(0, 0, 0, 0))), ONE),
    "half transparent": (saved(colours((ONE, (255, 0, 0, 100)), ground=(0, 0, 0, 0))), ONE),
    "opaque black and red": (saved(colours((ONE, (255, 0, 0, 255)), ground=(0, 0, 0, 255))), ONE),
    "black and red, transparent beside": (saved(colours((BOTH, (0, 0, 0, 255)), (ONE, (255, 0, 0, 255)),
                                                        ground=(255, 255, 255, 0))), ONE),
    "lossless WebP": (saved(colours((ONE, (255, 255, 255))), "WEBP", lossless=True), ONE),
    "nothing": (saved(levels()), box(0, 0, 0, 0)),
    "everything": (saved(levels(ground=255)), box(0, 0, WIDTH, HEIGHT)),
}


@pytest.mark.parametrize("name", READS)
def test_the_object_is_read_by_what_the_picture_shows(name: str) -> None:
    data, wanted = READS[name]
    found = read_mask_picture(data)
    assert found.mask.dtype == bool
    assert np.array_equal(found.mask, wanted), f"{found.mask.sum()} px, not {wanted.sum()}: {found.how}"
    assert found.void is None or not (found.void & found.mask).any()


@pytest.mark.parametrize("name", ["numbers and void", "a large number and its rim of void", "trimap",
                                  "VOC's palette with void", "VOC's colours with void"])
def test_void_is_told_apart(name: str) -> None:
    found = read_mask_picture(READS[name][0])
    assert found.void is not None
    assert np.array_equal(found.void, BAND if name == "trimap" else RIM)
    assert "void" in found.how


@pytest.mark.parametrize("quality", [60, 75, 95])
def test_a_mask_that_was_a_jpeg_once_is_read_from_half_of_white_on(quality: int) -> None:
    again = Image.open(io.BytesIO(saved(levels((box(16, 8, 48, 40), 255)), "JPEG", quality=quality)))
    assert np.array_equal(read_mask_picture(saved(again)).mask, box(16, 8, 48, 40))
    ragged = np.array(Image.open(io.BytesIO(saved(levels((ONE, 255)), "JPEG", quality=quality))))
    assert np.array_equal(read_mask_picture(saved(ragged)).mask, ragged >= 128)


def test_a_blurred_mask_is_read_from_half_of_white_on() -> None:
    x = np.linspace(-3, 3, 900)
    soft = (255 * np.exp(-(x[:, None] ** 2 + x[None] ** 2))).astype(np.uint8)
    assert np.array_equal(read_mask_picture(saved(soft)).mask, soft >= 128)


NOISE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
REFUSED = {
    "JPEG": (saved(levels((ONE, 255)), "JPEG"), "JPEG is lossy: it changes a mask around its edges; save the"),
    "lossy WebP": (saved(colours((ONE, (255, 255, 255))), "WEBP", quality=50), "lossy WebP is lossy"),
    "JPEG in TIFF": (saved(levels((ONE, 255)), "TIFF", compression="jpeg"), "JPEG in TIFF is lossy"),
    "pages": (saved(levels((ONE, 255)), "TIFF", save_all=True, append_images=[Image.fromarray(levels((TWO, 255)))]),
              "has 2 pages or frames"),
    "photo": (saved(NOISE), "it is a photo, not a mask"),
    "white ground": (saved(colours((ONE, (255, 0, 0)), ground=(255, 255, 255))), "the background has to be black"),
    "no ground": (saved(levels((ONE, 1), (TWO, 3), ground=2)), "no pixel of the mask is background (0)"),
    "two grounds": (palette(levels((ONE, 1), (TWO, 2)), [255, 255, 255, 0, 0, 0, 255, 0, 0]), "palette"),
    "not a number": (saved(levels((ONE, np.nan), dtype=np.float32), "TIFF"), "not numbers"),
    "text": (b"these are no pixels", "unreadable mask: not an image this program can read"),
    "nothing": (b"", "empty file"),
    "half a file": (saved(SMOOTH)[:200], "unreadable mask"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_one_meaning_is_refused_with_the_reason(name: str) -> None:
    data, reason = REFUSED[name]
    with pytest.raises(BadImage) as caught:
        read_mask_picture(data)
    assert reason in caught.value.reason
    assert "\n" not in str(caught.value)
    assert "0x" not in str(caught.value)


def test_no_bytes_raise_anything_else() -> None:
    rng = np.random.default_rng(1)
    for data, _ in READS.values():
        for _ in range(8):
            broken = bytearray(data)
            for at in rng.integers(0, len(broken), 4):
                broken[at] = rng.integers(256)
            try:
                assert read_mask_picture(bytes(broken)).mask.ndim == 2
            except BadImage:
                continue
