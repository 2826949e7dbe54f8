"""The outlines of the 20 drawn classes, as polygons in the square [-1, 1] x [-1, 1] (x right, y down).

A glyph is a list of strokes applied in order: `add` fills, `cut` makes a hole, `ink` is a darker detail inside.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import cos, pi, sin
from typing import Literal, NamedTuple

import numpy as np


class Stroke(NamedTuple):
    """One polygon with P corners, points [P, 2]."""

    kind: Literal["add", "cut", "ink"]
    points: np.ndarray


Glyph = list[Stroke]


def _s(kind: Literal["add", "cut", "ink"], *points: tuple[float, float]) -> Stroke:
    return Stroke(kind, np.array(points, dtype=np.float64))


def _ellipse(x: float, y: float, rx: float, ry: float, start: float = 0, end: float = 2 * pi, n: int = 36) -> list[
        tuple[float, float]]:
    """Points along an arc; angles run from the right, downwards."""
    return [(x + rx * cos(t), y + ry * sin(t)) for t in np.linspace(start, end, n)]


def _curve(*control: tuple[float, float], n: int = 16) -> list[tuple[float, float]]:
    """A Bezier curve through its first and last control point."""
    points = np.array(control, dtype=np.float64)
    out = []
    for t in np.linspace(0, 1, n):
        p = points
        while len(p) > 1:
            p = p[:-1] * (1 - t) + p[1:] * t
        out.append((float(p[0, 0]), float(p[0, 1])))
    return out


def _mirrored(right: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """A symmetric outline from its right half, which runs from top to bottom."""
    return right + [(-x, y) for x, y in reversed(right)]


def _star() -> Glyph:
    return [_s("add", *[(r * sin(i * pi / 5), -r * cos(i * pi / 5)) for i, r in enumerate([1.0, 0.42] * 5)])]


def _heart() -> Glyph:
    t = np.linspace(0, 2 * pi, 60)
    x, y = 16 * np.sin(t) ** 3, 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return [Stroke("add", np.stack([x / 17, -(y + 2.5) / 15], axis=1))]


def _arrow() -> Glyph:
    return [_s("add", (-1, -0.2), (0.1, -0.2), (0.1, -0.65), (1, 0), (0.1, 0.65), (0.1, 0.2), (-1, 0.2))]


def _cross() -> Glyph:
    a = 0.3
    return [_s("add", (-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a),
               (-a, -a))]


def _ring() -> Glyph:
    return [_s("add", *_ellipse(0, 0, 0.95, 0.95, n=48)), _s("cut", *_ellipse(0, 0, 0.5, 0.5, n=36))]


def _crescent() -> Glyph:
    return [_s("add", *_ellipse(0, 0, 0.95, 0.95, n=48)), _s("cut", *_ellipse(0.42, -0.12, 0.75, 0.75, n=48))]


def _gear() -> Glyph:
    points = []
    for i in range(9):
        for angle, radius in ((-0.5, 0.72), (-0.3, 0.98), (0.3, 0.98), (0.5, 0.72)):
            t = 2 * pi * (i + angle * 0.62) / 9
            points.append((radius * cos(t), radius * sin(t)))
    return [_s("add", *points), _s("cut", *_ellipse(0, 0, 0.3, 0.3))]


def _house() -> Glyph:
    return [_s("add", (-0.7, -0.1), (0.7, -0.1), (0.7, 0.95), (-0.7, 0.95)),
            _s("add", (-1, -0.1), (0, -0.95), (1, -0.1)),
            _s("add", (0.4, -0.9), (0.65, -0.9), (0.65, -0.3), (0.4, -0.3)),
            _s("ink", (-0.18, 0.35), (0.18, 0.35), (0.18, 0.95), (-0.18, 0.95)),
            _s("ink", (0.32, 0.1), (0.55, 0.1), (0.55, 0.35), (0.32, 0.35)),
            _s("ink", (-0.55, 0.1), (-0.32, 0.1), (-0.32, 0.35), (-0.55, 0.35))]


def _tree() -> Glyph:
    tiers = [_s("add", (0, top), (half, top + 0.75), (-half, top + 0.75)) for top, half in
             ((-1, 0.5), (-0.55, 0.65), (-0.1, 0.8))]
    return [_s("add", (-0.14, 0.6), (0.14, 0.6), (0.14, 1), (-0.14, 1)), *tiers,
            _s("ink", (-0.14, 0.66), (0.14, 0.66), (0.14, 1), (-0.14, 1))]


def _fish() -> Glyph:
    back = _curve((-0.6, 0), (-0.1, -0.95), (0.75, -0.55), (1, 0))
    belly = _curve((1, 0), (0.75, 0.55), (-0.1, 0.95), (-0.6, 0))
    return [_s("add", *back, *belly), _s("add", (-0.45, 0), (-1, -0.55), (-0.85, 0), (-1, 0.55)),
            _s("add", (0.0, -0.4), (-0.25, -0.8), (0.4, -0.4)), _s("ink", *_ellipse(0.62, -0.12, 0.09, 0.09, n=16)),
            _s("ink", *_curve((0.35, -0.35), (0.2, 0), (0.35, 0.35)), *_curve((0.3, 0.35), (0.13, 0), (0.3, -0.35)))]


def _bottle() -> Glyph:
    right = [(0.13, -1), (0.13, -0.5), *_curve((0.13, -0.5), (0.15, -0.25), (0.38, -0.2), (0.38, 0.05)), (0.38, 0.9),
             (0.3, 1)]
    return [_s("add", *_mirrored(right)), _s("ink", (-0.38, 0.25), (0.38, 0.25), (0.38, 0.7), (-0.38, 0.7)),
            _s("ink", (-0.13, -1), (0.13, -1), (0.13, -0.85), (-0.13, -0.85))]


def _mug() -> Glyph:
    return [_s("add", *_ellipse(0.5, 0, 0.5, 0.48)), _s("cut", *_ellipse(0.5, 0, 0.3, 0.28)),
            _s("add", (-0.8, -0.75), (0.5, -0.75), (0.5, 0.6), (0.35, 0.75), (-0.65, 0.75), (-0.8, 0.6)),
            _s("ink", *_ellipse(-0.15, -0.66, 0.55, 0.07))]


def _key() -> Glyph:
    return [_s("add", *_ellipse(-0.58, 0, 0.42, 0.42)), _s("cut", *_ellipse(-0.66, 0, 0.18, 0.18)),
            _s("add", (-0.3, -0.11), (1, -0.11), (1, 0.45), (0.8, 0.45), (0.8, 0.11), (0.62, 0.11), (0.62, 0.35),
               (0.44, 0.35), (0.44, 0.11), (-0.3, 0.11))]


def _umbrella() -> Glyph:
    canopy = _ellipse(0, 0, 0.98, 0.85, pi, 2 * pi)
    scallop = [p for i in range(4) for p in _ellipse(0.735 - 0.49 * i, 0, 0.245, 0.16, 2 * pi, pi, n=8)]
    hook = _ellipse(0.2, 0.75, 0.26, 0.24, pi, 0.12 * pi, n=14) + _ellipse(0.2, 0.75, 0.13, 0.11, 0.12 * pi, pi, n=14)
    return [_s("add", *canopy, *scallop), _s("add", (-0.06, -0.97), (0.06, -0.97), (0.06, 0.78), (-0.06, 0.78)),
            _s("add", *hook)]


def _leaf() -> Glyph:
    right = _curve((0, -1), (0.95, -0.45), (0.65, 0.45), (0, 0.7))
    blade = right + _curve((0, 0.7), (-0.65, 0.45), (-0.95, -0.45), (0, -1))
    veins = [_s("ink", (0, y), (side * 0.38, y - 0.26), (side * 0.36, y - 0.2), (0, y + 0.08))
             for y in (-0.25, 0.1, 0.42) for side in (-1, 1)]
    return [_s("add", *blade), _s("add", (-0.06, 0.6), (0.06, 0.6), (0.12, 1), (0, 1)),
            _s("ink", (-0.03, -0.85), (0.03, -0.85), (0.05, 0.7), (-0.05, 0.7)), *veins]


def _lightning() -> Glyph:
    return [_s("add", (0.25, -1), (-0.55, 0.15), (-0.05, 0.15), (-0.3, 1), (0.55, -0.25), (0.05, -0.25), (0.55, -1))]


def _crown() -> Glyph:
    points = [(-0.9, 0.7), (-1, -0.35), (-0.48, 0.15), (0, -0.75), (0.48, 0.15), (1, -0.35), (0.9, 0.7)]
    balls = [_s("add", *_ellipse(x, y, 0.12, 0.12, n=18)) for x, y in ((-1, -0.42), (0, -0.82), (1, -0.42))]
    return [_s("add", *points), *balls, _s("ink", (-0.9, 0.48), (0.9, 0.48), (0.9, 0.6), (-0.9, 0.6)),
            _s("ink", *_ellipse(0, 0.2, 0.12, 0.14, n=18))]


def _mushroom() -> Glyph:
    stem = [(-0.2, 0), (0.2, 0), *_curve((0.2, 0), (0.2, 0.6), (0.4, 0.95)),
            *_curve((-0.4, 0.95), (-0.2, 0.6), (-0.2, 0))]
    dots = [_s("ink", *_ellipse(x, y, r, r * 0.8, n=18)) for x, y,
            r in ((-0.45, -0.3, 0.16), (0.1, -0.55, 0.19), (0.55, -0.2, 0.13))]
    cap = _ellipse(0, 0, 0.95, 0.95, pi, 2 * pi) + _curve((0.95, 0), (0, 0.25), (-0.95, 0))
    return [_s("add", *stem), _s("add", *cap), *dots]


def _butterfly() -> Glyph:
    wings = []
    for s in (-1, 1):
        upper = _curve((s * 0.05, 0), (s * 0.2, -1.25), (s * 1.5, -1.05), (s * 0.85, 0), (s * 0.05, 0.1))
        lower = _curve((s * 0.05, 0), (s * 1.1, 0.0), (s * 0.95, 1.25), (s * 0.25, 0.95), (s * 0.05, 0.2))
        wings += [_s("add", *upper), _s("add", *lower), _s("ink", *_ellipse(s * 0.55, -0.42, 0.15, 0.15, n=18)),
                  _s("ink", *_ellipse(s * 0.45, 0.42, 0.1, 0.12, n=18))]
    return [*wings, _s("add", *_ellipse(0, 0.08, 0.1, 0.6)), _s("ink", *_ellipse(0, 0.08, 0.07, 0.55))]


def _sailboat() -> Glyph:
    return [_s("add", (-0.95, 0.45), (0.95, 0.45), (0.6, 0.95), (-0.6, 0.95)),
            _s("add", (-0.09, -1), (0.03, -1), (0.03, 0.5), (-0.09, 0.5)),
            _s("add", *_curve((0.02, -0.92), (0.75, -0.3), (0.85, 0.3)), (0.02, 0.3)),
            _s("add", *_curve((-0.08, -0.7), (-0.55, -0.2), (-0.7, 0.3)), (-0.08, 0.3)),
            _s("ink", (-0.95, 0.45), (0.95, 0.45), (0.88, 0.56), (-0.88, 0.56))]


# The position is the class id. Fold f of 4 tests {f, f + 4, ...}, which mixes round, angular and thin outlines.
_MAKERS: dict[str, Callable[[], Glyph]] = {
    "star": _star, "heart": _heart, "arrow": _arrow, "house": _house, "fish": _fish,
    "ring": _ring, "key": _key, "tree": _tree, "gear": _gear, "umbrella": _umbrella,
    "bottle": _bottle, "crescent": _crescent, "lightning": _lightning, "mug": _mug, "butterfly": _butterfly,
    "leaf": _leaf, "crown": _crown, "mushroom": _mushroom, "cross": _cross, "sailboat": _sailboat,
}  # fmt: skip


def class_names() -> list[str]:
    """The names of the drawn classes. The position of a name is the class id."""
    return list(_MAKERS)


@cache
def glyph(class_id: int) -> tuple[Stroke, ...]:
    """The strokes of a class, in drawing order."""
    return tuple(_MAKERS[class_names()[class_id]]())
