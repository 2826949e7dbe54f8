"""Draws one picture of the `shapes` dataset: a pure function of (seed, index, side).

Everything is drawn at twice the size and averaged down, so edges are soft. A pixel belongs to an object that covers at
least half of it. Colour, texture, scale, rotation, shadow and background are independent of the class.
"""

from __future__ import annotations

import colorsys
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from pipelines.data.sources.glyphs import class_names, glyph

_OVER = 2  # oversampling
_COUNTS, _COUNT_ODDS = (1, 2, 3), (0.45, 0.35, 0.2)
_VISIBLE, _SMALLEST = 0.55, 0.012  # least visible share of an object; least share of the picture that it covers
_QUALITY = 92


@dataclass(frozen=True)
class GeneratedImage:
    """A JPEG and its objects as (class id, mask of the visible part [side, side] bool), in drawing order."""

    jpeg: bytes
    objects: list[tuple[int, np.ndarray]]


def draw_image(seed: int, index: int, side: int) -> GeneratedImage:
    """Draw picture number `index`. Pictures 20n to 20n + 19 show every class at least once."""
    rng = np.random.default_rng([seed, index, side])
    canvas = _background(rng, side * _OVER)
    owner = np.zeros(canvas.shape[:2], dtype=np.uint8)
    classes = _classes(rng, seed, index)
    drawn: list[int] = []
    for class_id in classes:
        if _place(rng, canvas, owner, class_id, len(drawn) + 1, crowded=len(classes)):
            drawn.append(class_id)
    picture = Image.fromarray(canvas).reduce(_OVER)
    return GeneratedImage(_jpeg(rng, picture), list(zip(drawn, _visible(owner, len(drawn)), strict=True)))


def _classes(rng: np.random.Generator, seed: int, index: int) -> list[int]:
    """Class ids of the objects of a picture.

    The first one follows a permutation of all classes, so that small datasets show each class; the others are random.
    """
    names = class_names()
    round_, place = divmod(index, len(names))
    first = int(np.random.default_rng([seed, round_, 7]).permutation(len(names))[place])
    count = int(rng.choice(_COUNTS, p=_COUNT_ODDS))
    others = [first if rng.random() < 0.25 else int(rng.integers(len(names))) for _ in range(count - 1)]
    return [first, *others]


def _visible(owner: np.ndarray, count: int) -> list[np.ndarray]:
    """The visible mask of every object. A pixel that two objects share equally belongs to the upper one."""
    masks = [_half_covered(owner == i + 1) for i in range(count)]
    taken = np.zeros((owner.shape[0] // _OVER, owner.shape[1] // _OVER), dtype=bool)
    for mask in reversed(masks):
        mask &= ~taken
        taken |= mask
    return masks


def _half_covered(big: np.ndarray) -> np.ndarray:
    h, w = big.shape
    covered: np.ndarray = big.reshape(h // _OVER, _OVER, w // _OVER, _OVER).sum(axis=(1, 3))
    return np.asarray(covered * 2 >= _OVER * _OVER)


def _jpeg(rng: np.random.Generator, picture: Image.Image) -> bytes:
    pixels = np.asarray(picture).astype(np.int16)
    grain = rng.integers(-5, 6, size=(*pixels.shape[:2], 1), dtype=np.int16)  # noise, as a camera has it
    out = io.BytesIO()
    Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8)).save(out, "JPEG", quality=_QUALITY)
    return out.getvalue()


# ---- background ---------------------------------------------------------------------------------------------------

def _colour(rng: np.random.Generator, *, s: tuple[float, float], v: tuple[float, float]) -> np.ndarray:
    hsv = (rng.random(), rng.uniform(*s), rng.uniform(*v))
    return np.array(colorsys.hsv_to_rgb(*hsv)) * 255


def _background(rng: np.random.Generator, side: int) -> np.ndarray:
    """A background [side, side, 3] uint8: a gradient, soft clouds, and strokes that belong to no class."""
    v = (0.25, 0.6) if rng.random() < 0.35 else (0.6, 0.97)
    a, b = _colour(rng, s=(0.08, 0.5), v=v), _colour(rng, s=(0.08, 0.5), v=v)
    small = 64
    y, x = np.mgrid[0:small, 0:small] / small - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    round_, centre = rng.random() < 0.35, rng.uniform(-0.3, 0.3)
    ramp = np.hypot(x - centre, y) if round_ else x * np.cos(angle) + y * np.sin(angle) + 0.5
    ground = a + (b - a) * np.clip(ramp, 0, 1)[..., None]
    ground = ground + _clouds(rng, small)[..., None] * rng.uniform(4, 34)
    image = Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    _clutter(rng, image, side)
    return np.array(image)


def _clouds(rng: np.random.Generator, side: int) -> np.ndarray:
    """Smooth noise [side, side] of about unit variance."""
    total = np.zeros((side, side))
    for cells, weight in ((4, 1.0), (11, 0.5)):
        coarse = Image.fromarray(rng.standard_normal((cells, cells)).astype(np.float32))
        total += weight * np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))
    return total


def _clutter(rng: np.random.Generator, image: Image.Image, side: int) -> None:
    pen = ImageDraw.Draw(image, "RGBA")
    for _ in range(int(rng.integers(0, 15))):
        colour = (*(int(c) for c in _colour(rng, s=(0.1, 0.7), v=(0.3, 0.95))), int(rng.integers(50, 150)))
        x, y = rng.uniform(0, side, 2)
        size, width = rng.uniform(0.03, 0.2) * side, int(rng.uniform(0.006, 0.022) * side) + 1
        kind = rng.integers(4)
        if kind == 0:
            angle = rng.uniform(0, 2 * np.pi)
            pen.line((x, y, x + 2 * size * np.cos(angle), y + 2 * size * np.sin(angle)), fill=colour, width=width)
        elif kind == 1:
            start = rng.uniform(0, 360)
            pen.arc((x, y, x + size, y + size), start, start + rng.uniform(40, 170), fill=colour, width=width)
        elif kind == 2:
            r = size * 0.18
            pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
        else:
            steps = np.cumsum(rng.uniform(-0.5, 0.5, (5, 2)) * size, axis=0) + np.array([x, y])
            pen.line([tuple(p) for p in steps], fill=colour, width=width, joint="curve")


# ---- objects ------------------------------------------------------------------------------------------------------

def _place(
    rng: np.random.Generator, canvas: np.ndarray, owner: np.ndarray, class_id: int, number: int, *, crowded: int
) -> bool:
    """Draw one object where it does not hide too much of earlier ones. Returns False if no place was found."""
    side = canvas.shape[0]
    for attempt in range(10):
        radius = side * rng.uniform(0.15, 0.36 if crowded == 1 else 0.26) * (0.97**attempt)
        centre = rng.uniform(radius * 0.75, side - radius * 0.75, 2)
        points = _transformer(rng, centre, radius)
        box = _box(points, class_id, side)
        mask, ink = _masks(points, class_id, box)
        if _fits(mask, owner, box, number, side):
            _paint(rng, canvas, mask, ink, box)
            x0, y0, x1, y1 = box
            owner[y0:y1, x0:x1][mask >= 128] = number
            return True
    return False


def _transformer(rng: np.random.Generator, centre: np.ndarray, radius: float) -> np.ndarray:
    """Affine map [2, 3] from the glyph's square to canvas pixels: rotation, scale, a little stretch and shear."""
    angle = rng.normal(0, 0.45) if rng.random() < 0.7 else rng.uniform(-np.pi, np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    bend = np.array([[rng.uniform(0.8, 1.2), rng.uniform(-0.18, 0.18)], [0, rng.uniform(0.8, 1.2)]])
    mirror = np.diag([rng.choice([-1.0, 1.0]), 1.0])
    return np.concatenate([turn @ bend @ mirror * radius, centre[:, None]], axis=1)


def _apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return np.asarray(points @ matrix[:, :2].T + matrix[:, 2])


def _box(matrix: np.ndarray, class_id: int, side: int) -> tuple[int, int, int, int]:
    """The box (x0, y0, x1, y1) of the object on the canvas."""
    points = np.concatenate([_apply(matrix, s.points) for s in glyph(class_id)])
    low = np.clip(np.floor(points.min(axis=0)).astype(int) - 1, 0, side - 2)
    high = np.clip(np.ceil(points.max(axis=0)).astype(int) + 2, low + 1, side)
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def _masks(matrix: np.ndarray, class_id: int, box: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The masks of the object and of its details, both [h, w] uint8."""
    size = (box[2] - box[0], box[3] - box[1])
    body, detail = Image.new("L", size), Image.new("L", size)
    pens = {"add": (ImageDraw.Draw(body), 255), "cut": (ImageDraw.Draw(body), 0), "ink": (ImageDraw.Draw(detail), 255)}
    for stroke in glyph(class_id):
        pen, value = pens[stroke.kind]
        pen.polygon([tuple(p) for p in _apply(matrix, stroke.points) - (box[0], box[1])], fill=value)
    mask = np.array(body)
    return mask, np.minimum(np.array(detail), mask)


def _fits(mask: np.ndarray, owner: np.ndarray, box: tuple[int, int, int, int], number: int, side: int) -> bool:
    x0, y0, x1, y1 = box
    on = mask >= 128
    if on.sum() < _SMALLEST * side * side:
        return False
    under = owner[y0:y1, x0:x1]
    for other in range(1, number):
        hidden = (on & (under == other)).sum()
        if not hidden:
            continue
        whole = (owner == other).sum()
        if whole - hidden < max(_VISIBLE * whole, _SMALLEST * side * side):
            return False
    return True


def _paint(
    rng: np.random.Generator, canvas: np.ndarray, mask: np.ndarray, ink: np.ndarray, box: tuple[int, int, int, int]
) -> None:
    """A soft shadow, then the textured object with light from above and a thin darker rim."""
    side = canvas.shape[0]
    _shadow(rng, canvas, mask, box)
    h, w = mask.shape
    base = _colour(rng, s=(0.35, 0.95), v=(0.4, 1.0))
    pixels = _texture(rng, base, h, w)
    light = 1.1 - 0.25 * (np.arange(h) / max(h - 1, 1))
    blurred = np.pad(mask, 2)  # so that the canvas' edge is no rim
    rim = np.asarray(Image.fromarray(blurred).filter(ImageFilter.BoxBlur(max(1.0, side / 256))))[2:-2, 2:-2] < 215
    pixels *= light.astype(np.float32)[:, None, None]
    pixels[rim] *= 0.72
    pixels[ink >= 128] *= 0.55
    x0, y0, x1, y1 = box
    on = mask >= 128
    canvas[y0:y1, x0:x1][on] = np.clip(pixels[on], 0, 255)


def _shadow(rng: np.random.Generator, canvas: np.ndarray, mask: np.ndarray, box: tuple[int, int, int, int]) -> None:
    side = canvas.shape[0]
    blur, drop, dark = side * 0.012, int(side * rng.uniform(0.008, 0.025)), rng.uniform(0.2, 0.5)
    pad = int(blur * 3)
    padded = Image.fromarray(np.pad(mask, pad)).filter(ImageFilter.BoxBlur(blur)).filter(ImageFilter.BoxBlur(blur))
    soft = np.asarray(padded)
    x0, y0 = box[0] - pad + drop // 2, box[1] - pad + drop
    cx0, cy0, cx1, cy1 = max(x0, 0), max(y0, 0), min(x0 + soft.shape[1], side), min(y0 + soft.shape[0], side)
    part = soft[cy0 - y0 : cy1 - y0, cx0 - x0 : cx1 - x0].astype(np.float32)[..., None]
    region = canvas[cy0:cy1, cx0:cx1]
    region[...] = (region * (1 - part * np.float32(dark / 255))).astype(np.uint8)


def _texture(rng: np.random.Generator, base: np.ndarray, h: int, w: int) -> np.ndarray:
    """A texture [h, w, 3] float32: plain, stripes, dots, checks, soft noise or a gradient between two colours."""
    second = np.clip(base * rng.uniform(0.45, 0.75), 0, 255) if rng.random() < 0.5 else _colour(
        rng, s=(0.2, 0.9), v=(0.4, 1.0))
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    angle, scale = rng.uniform(0, np.pi), max(h, w)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    period = np.float32(scale * rng.uniform(0.1, 0.22))
    kind = int(rng.integers(6))
    if kind == 0:
        mix = np.zeros((h, w), dtype=np.float32)
    elif kind == 1:
        mix = (np.mod(u, period) < period * rng.uniform(0.3, 0.6)).astype(np.float32)
    elif kind == 2:
        du, dv = np.mod(u, period) - period / 2, np.mod(v, period) - period / 2
        mix = (du * du + dv * dv < (period * 0.28) ** 2).astype(np.float32)
    elif kind == 3:
        mix = np.mod(np.floor(u / period) + np.floor(v / period), 2).astype(np.float32)
    elif kind == 4:
        coarse = Image.fromarray(_clouds(rng, 24).astype(np.float32)).resize((w, h), Image.Resampling.BICUBIC)
        mix = np.clip(0.5 + 0.4 * np.asarray(coarse), 0, 1)
    else:
        mix = np.clip((u - u.min()) / max(float(np.ptp(u)), 1.0), 0, 1)
    low, change = base.astype(np.float32), (second - base).astype(np.float32)
    return np.asarray(low + change * mix.astype(np.float32)[..., None])
