"""Boxes, points and scribbles drawn from masks, as VRP-SAM's training and tests do.

The random draws follow the released code's streams, so that the same seeds give the same marks (scribbles: as far as
PIL draws alike; checked with Pillow 13).
"""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

MOST = 20  # largest number of points or strokes for a mask
TEST_CHOICE = 321  # seed of the choice of pen and count in the released tests, whatever the run's seed
MOVED_SHARE = 0.5  # share of a stroke's vertices that are jittered


@dataclass(frozen=True, kw_only=True)
class Pen:
    """Shape of strokes in pixels: ranges [low, high) of vertices and width, speeds, and their changes per vertex.

    The released settings of the second pen are fractions (width 2.5, jitter 1.5), which numpy's draw truncates.
    """

    vertices: tuple[int, int]
    speed: float
    change: tuple[float, float]  # largest changes of speed, and of angle in radians
    width: tuple[int, int]
    jitter: int
    drift: float
    drift_change: tuple[float, float]


PENS = (
    Pen(vertices=(10, 30), speed=20, change=(15, 0.5), width=(3, 10), jitter=3, drift=6, drift_change=(5, 0.5)),
    Pen(vertices=(6, 22), speed=12, change=(8, 0.5), width=(2, 5), jitter=1, drift=3, drift_change=(3, 0.5)),
)


@dataclass(frozen=True, kw_only=True)
class RandomStreams:
    """The three random streams that marks are drawn from."""

    tensor: torch.Generator
    array: np.random.RandomState
    choice: random.Random

    @staticmethod
    def seeded(seed: int) -> RandomStreams:
        """Seed all three streams with one number."""
        return RandomStreams(tensor=torch.Generator().manual_seed(seed), array=np.random.RandomState(seed),
                       choice=random.Random(seed))


def simulate_marks(masks: Tensor, kind: str, *, seed: int | None) -> Tensor:
    """Replace each mask [E, R, R] in {0, 1} by a `box`, `point`s or a `scribble`, [E, R, R]; empty masks stay empty.

    With a seed each mask's marks depend on the mask alone. Without one (training) seeds come from torch's generator,
    and how many points or strokes is drawn too.
    """
    if kind == "box":
        return box_marks(masks)
    drawn = []
    for mask in masks.cpu():
        streams = RandomStreams.seeded(int(torch.randint(2**31 - 1, ())) if seed is None else seed)
        drawn.append(draw_marks(mask[None], kind, streams, vary=seed is None))
    return torch.cat(drawn).to(masks) if drawn else masks


def box_marks(masks: Tensor) -> Tensor:
    """The filled rectangle around each mask [E, R, R], its last row and column included."""
    rows, columns = (masks > 0).any(dim=2), (masks > 0).any(dim=1)
    return (_span(rows)[:, :, None] & _span(columns)[:, None, :]).to(masks)


def _span(line: Tensor) -> Tensor:
    """Fill each line [E, R] bool between its first and its last True."""
    seen = line.to(torch.uint8)
    return (seen.cummax(dim=1).values & seen.flip(1).cummax(dim=1).values.flip(1)).bool()


def draw_marks(masks: Tensor, kind: str, streams: RandomStreams, *, vary: bool = False) -> Tensor:
    """Draw points or scribbles for a batch of masks [E, R, R] on the CPU, mask after mask, from one set of streams.

    As in the released code, their number depends on the whole batch: 20 points, or a random number of strokes up to
    20; with `vary` (training) both numbers are random.
    """
    most = min(MOST, int(masks.sum()))
    if most == 0:
        return torch.zeros_like(masks)
    if kind == "point":
        count = streams.choice.randint(1, most) if vary else most
        return torch.stack([_points(m, count, streams) for m in masks])
    choice = streams.choice if vary else random.Random(TEST_CHOICE)
    count = choice.randint(1, most)
    pen = PENS[0] if choice.random() < 0.5 else PENS[1]
    return torch.stack([_scribble(m, count, pen, streams) for m in masks])


def _pick(mask: Tensor, count: int, streams: RandomStreams) -> Tensor:
    """Flat indices of up to `count` pixels of the mask."""
    inside = mask.flatten().nonzero()[:, 0]
    return inside[torch.randperm(len(inside), generator=streams.tensor)[:count]]


def _points(mask: Tensor, count: int, streams: RandomStreams) -> Tensor:
    marks = torch.zeros_like(mask).flatten()
    marks[_pick(mask, count, streams)] = 1
    return marks.view_as(mask)


def _scribble(mask: Tensor, count: int, pen: Pen, streams: RandomStreams) -> Tensor:
    """Strokes that start inside the mask, cut to it. Rows start at index / width, not rounded (released code)."""
    width = mask.shape[1]
    starts = _pick(mask, count, streams).tolist()
    strokes = [_stroke(s % width, s / width, pen, streams.array) for s in starts]
    picture = Image.new("1", (width, mask.shape[0]), 0)
    for x, y, drift, thickness in strokes:
        _draw(ImageDraw.Draw(picture), *_moved(x, y, drift, pen, streams.array), thickness)
    drawn = torch.from_numpy(np.array(picture, dtype=np.uint8)).to(mask)
    return drawn * (mask > 0).to(mask)


_Line = tuple[np.ndarray, np.ndarray, tuple[float, float], int]


def _stroke(x: float, y: float, pen: Pen, draw: np.random.RandomState) -> _Line:
    """A random walk of vertices, the drift (speed, angle) it will be moved by, and its thickness."""
    thickness = int(draw.randint(*pen.width))
    vertices = draw.randint(*pen.vertices)
    angle, speed = draw.uniform(0, 2 * np.pi), draw.uniform(0, pen.speed)
    path = [(x, y)]
    for _ in range(vertices):
        speed += draw.uniform(-pen.change[0], pen.change[0])
        angle += draw.uniform(-pen.change[1], pen.change[1])
        speed = min(max(speed, 0.0), pen.speed)
        path.append((path[-1][0] + speed * math.sin(angle), path[-1][1] + speed * math.cos(angle)))
    drift = abs(draw.normal(0, pen.drift / 2)), draw.uniform(0, 2 * np.pi)
    return np.array([p[0] for p in path]), np.array([p[1] for p in path]), drift, thickness


def _moved(
    x: np.ndarray, y: np.ndarray, drift: tuple[float, float], pen: Pen, draw: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray]:
    """Move the stroke by one step of drift and jitter half of its vertices."""
    x, y = x + int(drift[0] * math.cos(drift[1])), y + int(drift[0] * math.sin(drift[1]))
    for bound in pen.drift_change:  # one step never shows these changes of drift, but they advance the stream
        draw.normal(0, bound / 2)
    order = np.arange(len(x))
    draw.shuffle(order)
    for i in order[: int(len(x) * MOVED_SHARE)]:
        x[i] += draw.randint(-pen.jitter, pen.jitter)
        y[i] += draw.randint(-pen.jitter, pen.jitter)
    return x, y


def _draw(canvas: ImageDraw.ImageDraw, x: np.ndarray, y: np.ndarray, thickness: int) -> None:
    """Straight segments with discs at the vertices."""
    points = list(zip(x.tolist(), y.tolist(), strict=True))
    for a, b in itertools.pairwise(points):
        canvas.line((*a, *b), fill=1, width=thickness)
    radius = thickness // 2 - 1
    for px, py in points:
        canvas.ellipse((px - radius, py - radius, px + radius, py + radius), fill=1)
