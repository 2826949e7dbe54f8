"""Masks as polygons along the edges of their pixels: the polygons cover exactly the mask, one for each piece.

A piece with holes is also one polygon: a slit of width 0 connects each hole with the border. Tools that fill polygons
by counting crossings, like COCO's, leave the hole empty and do not see the slit.
"""

from __future__ import annotations

import numpy as np

Corner = tuple[int, int]  # x, y
_STEPS = {(1, 0): 0, (0, 1): 1, (-1, 0): 2, (0, -1): 3}  # directions, clockwise in the picture


def polygons(mask: np.ndarray) -> list[np.ndarray]:
    """A mask [H, W] bool -> for each 4-connected piece its corners (x, y) as [N, 2] int."""
    return [_joined(loop, holes) for loop, holes in borders(mask)]


def borders(mask: np.ndarray) -> list[tuple[np.ndarray, list[np.ndarray]]]:
    """A mask [H, W] bool -> for each 4-connected piece its outer border and those of its holes, corners [N, 2] int."""
    loops = [np.array(loop) for loop in _loops(_segments(mask))]
    outer = [loop for loop in loops if _area(loop) > 0]
    holes = [loop for loop in loops if _area(loop) < 0]
    inside: dict[int, list[np.ndarray]] = {}
    for hole in holes:
        inside.setdefault(_owner(hole, outer), []).append(hole)
    return [(loop, inside.get(number, [])) for number, loop in enumerate(outer)]


def joined(pieces: list[np.ndarray]) -> np.ndarray:
    """One polygon [N, 2] around several pieces, connected by slits of width 0."""
    return _joined(pieces[0], pieces[1:])


def simplified(loop: np.ndarray, tolerance: float) -> np.ndarray:
    """A polygon [N, 2] with fewer of its corners: each one left out is at most `tolerance` from the sides that remain.

    The algorithm is that of Ramer, Douglas and Peucker, on the two halves between two corners that are far apart.
    """
    far = int(np.abs(loop - loop[0]).sum(axis=1).argmax())
    if far == 0:
        return loop[:1]
    closed = np.concatenate([loop, loop[:1]]).astype(np.float64)
    kept, todo = {0, far}, [(0, far), (far, len(loop))]
    while todo:
        first, last = todo.pop()
        if last - first < 2:
            continue
        gaps = _gaps(closed[first + 1:last], closed[first], closed[last])
        worst = int(gaps.argmax())
        if gaps[worst] > tolerance:
            middle = first + 1 + worst
            kept.add(middle)
            todo += [(first, middle), (middle, last)]
    return loop[sorted(kept)]


def _gaps(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The distance of each point [N, 2] from the segment between `start` and `end`."""
    along = end - start
    length = float(along @ along)
    share = ((points - start) @ along / length).clip(0, 1) if length else np.zeros(len(points))
    gaps: np.ndarray = np.hypot(*(points - start - share[:, None] * along).T)
    return gaps


def _segments(mask: np.ndarray) -> dict[Corner, list[Corner]]:
    """The straight segments of the border, start -> ends. The object is on the right of each."""
    grown = np.pad(mask.astype(np.int8), 1)
    across = np.diff(grown, axis=0)[:, 1:-1]  # [H + 1, W]: 1 where the object begins below, -1 where it ends
    down = np.diff(grown, axis=1)[1:-1].T  # [W + 1, H]: 1 where it begins to the right
    found: dict[Corner, list[Corner]] = {}
    for row, first, last, kind in _stretches(across):
        start, end = ((first, row), (last, row)) if kind > 0 else ((last, row), (first, row))
        found.setdefault(start, []).append(end)
    for column, first, last, kind in _stretches(down):
        start, end = ((column, last), (column, first)) if kind > 0 else ((column, first), (column, last))
        found.setdefault(start, []).append(end)
    return found


def _stretches(kinds: np.ndarray) -> list[tuple[int, int, int, int]]:
    """(line, first, last + 1, kind) for each run of equal values other than 0, along the second dimension."""
    padded = np.pad(kinds, ((0, 0), (1, 1)))
    lines, where = np.nonzero(padded[:, 1:] != padded[:, :-1])
    values = padded[lines, where + 1]
    starts = np.flatnonzero(values)
    return [(int(lines[i]), int(where[i]), int(where[i + 1]), int(values[i])) for i in starts]


def _loops(segments: dict[Corner, list[Corner]]) -> list[list[Corner]]:
    """Closed loops along all segments. Where pieces touch in a corner, a loop turns right and stays on its piece."""
    loops = []
    while segments:
        start = next(iter(segments))
        at, loop = segments[start].pop(), [start]
        before = start
        if not segments[start]:
            del segments[start]
        while at != start:
            loop.append(at)
            ends = segments[at]
            pick = min(ends, key=lambda end: _turn(before, at, end))
            ends.remove(pick)
            if not ends:
                del segments[at]
            before, at = at, pick
        loops.append(loop)
    return loops


def _turn(before: Corner, at: Corner, after: Corner) -> int:
    """0 for a turn to the right, 2 for a turn to the left."""
    return (_way(at, after) - _way(before, at) - 1) % 4


def _way(start: Corner, end: Corner) -> int:
    return _STEPS[(np.sign(end[0] - start[0]), np.sign(end[1] - start[1]))]


def _area(loop: np.ndarray) -> float:
    """The signed area in pixels: positive for an outer border, negative for a hole."""
    x, y = loop[:, 0], loop[:, 1]
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) / 2


def _owner(hole: np.ndarray, outer: list[np.ndarray]) -> int:
    """The number of the smallest outer border around a hole."""
    x, y = hole[np.lexsort((hole[:, 1], hole[:, 0]))[0]] - np.array([0.5, -0.5])  # a pixel of the piece beside it
    around = [number for number, loop in enumerate(outer) if _contains(loop, x, y)]
    return min(around, key=lambda number: _area(outer[number]))


def _contains(loop: np.ndarray, x: float, y: float) -> bool:
    ends = np.roll(loop, -1, axis=0)
    upright = loop[:, 0] == ends[:, 0]
    low, high = np.minimum(loop[:, 1], ends[:, 1]), np.maximum(loop[:, 1], ends[:, 1])
    return bool((upright & (loop[:, 0] > x) & (low < y) & (y < high)).sum() % 2)


def _joined(loop: np.ndarray, others: list[np.ndarray]) -> np.ndarray:
    """One loop around a border and others, its holes or further pieces, each connected to the loop's nearest corner."""
    for other in others:
        gaps = np.abs(loop[:, None] - other[None]).sum(axis=2)
        here, there = np.unravel_index(int(gaps.argmin()), gaps.shape)
        around = np.concatenate([np.roll(other, -int(there), axis=0), other[there:there + 1]])
        loop = np.concatenate([loop[:here + 1], around, loop[here:]])
    return loop
