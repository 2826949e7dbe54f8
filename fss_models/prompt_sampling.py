"""Marks as a person might make them, drawn from a mask as SANSA's code does: points, a box, a scribble.

Every function takes a mask [H, W] bool and returns a `Prompt` in that mask's pixels; draws come from the given
generator alone. The official code draws from three global generators, we from one: distributions are equal, single
draws are not. In evaluation, counts are fixed; in training they vary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageDraw
from scipy import ndimage

from fss_models.clip import Prompt, PromptKind
from fss_models.errors import FssError

MOST_MARKS = 20  # points, or strokes of a scribble
EVALUATION_STROKES = 9  # the official evaluation's fixed seed always draws this number, with the `curve` style
SampledKind = Literal["mask", "point", "box", "scribble", "multi"]
_EACH: tuple[SampledKind, ...] = ("mask", "point", "scribble", "box")
_KINDS = {"mask": PromptKind.MASK, "point": PromptKind.POINTS, "scribble": PromptKind.SCRIBBLE, "box": PromptKind.BOX}


@dataclass(frozen=True, kw_only=True)
class StrokeStyle:
    """Ranges of a stroke's random walk, in pixels and radians per vertex."""

    vertices: tuple[int, int]  # range [low, high) of their number
    top_speed: float
    acceleration: float
    turn: float
    brush: tuple[int, int]
    start_speed: float  # standard deviation
    jitter: tuple[int, int]


CURVE = StrokeStyle(vertices=(10, 30), top_speed=20, acceleration=15, turn=0.5, brush=(3, 10), start_speed=3,
                    jitter=(-3, 3))
SMALL_CURVE = StrokeStyle(vertices=(6, 22), top_speed=12, acceleration=8, turn=0.5, brush=(2, 5), start_speed=1.5,
                    jitter=(-1, 1))


def kinds_of(name: SampledKind) -> frozenset[PromptKind]:
    """The kinds of mark that drawing `kind` may give: a scribble on a tiny object falls back to points."""
    names = _EACH if name == "multi" else (name,)
    return frozenset({_KINDS[n] for n in names} | ({PromptKind.POINTS} if "scribble" in names else set()))


def sample_prompt(mask: np.ndarray, kind: SampledKind, rng: np.random.Generator, *, training: bool) -> Prompt:
    """Draw a prompt of `kind`; `multi` draws one of the four. Raises `FssError` for an empty mask or unknown kind."""
    if not mask.any():
        raise FssError("the support mask is empty", hint="mark at least one pixel of the object")
    if kind == "multi":
        kind = _EACH[rng.integers(len(_EACH))]
    if kind == "mask":
        return Prompt(kind=PromptKind.MASK, mask=torch.from_numpy(mask.astype(bool)))
    if kind == "box":
        return sample_box(mask)
    if kind == "point":
        return sample_points(mask, rng, training=training)
    if kind == "scribble":
        return sample_scribble(mask, rng, training=training)
    raise FssError(f"unknown kind of prompt {kind!r}", hint=f"known: {', '.join((*_EACH, 'multi'))}")


def sample_points(mask: np.ndarray, rng: np.random.Generator, *, training: bool) -> Prompt:
    """Draw min(20, area) distinct pixels of the object, in raster order; in training 1 to that many."""
    ys, xs = np.nonzero(mask)
    picked = np.sort(rng.choice(len(xs), size=_count(len(xs), rng, training=training), replace=False))
    return _marks(PromptKind.POINTS, xs[picked], ys[picked])


def sample_box(mask: np.ndarray) -> Prompt:
    """Find the largest box after one pass of merging overlapping components (4-connectivity); x1, y1 are exclusive."""
    kept: list[list[int]] = []
    for rows, columns in ndimage.find_objects(ndimage.label(mask)[0]):
        box = [columns.start, rows.start, columns.stop, rows.stop]
        home = next((k for k in kept if _overlap(k, box)), None)
        if home is None:
            kept.append(box)
        else:
            home[:] = [min(home[0], box[0]), min(home[1], box[1]), max(home[2], box[2]), max(home[3], box[3])]
    largest = max(kept, key=lambda b: (b[2] - b[0]) * (b[3] - b[1]))
    return Prompt(kind=PromptKind.BOX, box=torch.tensor(largest, dtype=torch.float32))


def sample_scribble(mask: np.ndarray, rng: np.random.Generator, *, training: bool) -> Prompt:
    """Draw strokes that wander from pixels of the object; every drawn pixel inside the object becomes a point."""
    area = int(mask.sum())
    style = (CURVE, SMALL_CURVE)[rng.integers(2)] if training else CURVE
    strokes = _count(area, rng, training=True) if training else min(EVALUATION_STROKES, area)
    drawn = _draw(mask, style, strokes, rng) & mask
    if not drawn.any():  # every stroke started inside, and was jittered out of a tiny object
        return sample_points(mask, rng, training=training)
    ys, xs = np.nonzero(drawn)
    return _marks(PromptKind.SCRIBBLE, xs, ys)


def _draw(mask: np.ndarray, style: StrokeStyle, strokes: int, rng: np.random.Generator) -> np.ndarray:
    canvas = Image.new("L", (mask.shape[1], mask.shape[0]))
    pen = ImageDraw.Draw(canvas)
    ys, xs = np.nonzero(mask)
    for start in rng.integers(len(xs), size=strokes):
        path = _shaken(_walk(float(xs[start]), float(ys[start]), style, rng), style, rng)
        brush = int(rng.integers(*style.brush))
        corners = [(float(x), float(y)) for x, y in path]
        pen.line(corners, fill=1, width=brush)
        for x, y in corners:  # round joints
            pen.ellipse((x - brush // 2, y - brush // 2, x + brush // 2, y + brush // 2), fill=1)
    return np.asarray(canvas).astype(bool)


def _walk(x: float, y: float, style: StrokeStyle, rng: np.random.Generator) -> np.ndarray:
    """Random walk of vertices [V, 2] (x, y): speed and angle change a little from each to the next."""
    count = int(rng.integers(*style.vertices))
    speed, angle = abs(rng.normal(0, style.start_speed)), rng.uniform(0, 2 * np.pi)
    path = [(x, y)]
    for _ in range(count - 1):
        speed = float(np.clip(speed + rng.uniform(-style.acceleration, style.acceleration), 0, style.top_speed))
        angle += rng.uniform(-style.turn, style.turn)
        x, y = x + speed * np.sin(angle), y + speed * np.cos(angle)
        path.append((x, y))
    return np.array(path)


def _shaken(path: np.ndarray, style: StrokeStyle, rng: np.random.Generator) -> np.ndarray:
    """Move the whole stroke by one velocity and jitter a random half of its vertices."""
    speed, angle = abs(rng.normal(0, style.start_speed)), rng.uniform(0, 2 * np.pi)
    moved = path + np.array([int(speed * np.cos(angle)), int(speed * np.sin(angle))])
    chosen = rng.random(len(path)) < 0.5
    moved[chosen] += rng.integers(*style.jitter, size=(int(chosen.sum()), 2))
    return moved


def _count(area: int, rng: np.random.Generator, *, training: bool) -> int:
    most = min(MOST_MARKS, area)
    return int(rng.integers(1, most + 1)) if training else most


def _overlap(a: list[int], b: list[int]) -> bool:
    """Whether two boxes share a pixel; boxes that only touch do not."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _marks(kind: PromptKind, xs: np.ndarray, ys: np.ndarray) -> Prompt:
    points = torch.from_numpy(np.stack([xs, ys], axis=1).astype(np.float32))
    return Prompt(kind=kind, points=points, labels=torch.ones(len(points), dtype=torch.int32))
