"""Encoded views that several clips use: the frozen trunk encodes every view once, clips draw from a ring of scenes.

Scene n and the clips of step s are pure functions of (seed, n) and (seed, s), so a run resumes exactly: the ring at
step s holds the scenes `first(s)` ... `first(s) + size - 1`, encoded again at a restart.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fss_models.pretraining.objective import PretrainClips, PretrainPrompt
from fss_models.pretraining.views import Views

QUARTERS = {PretrainPrompt.MASK: 2, PretrainPrompt.BOX: 1, PretrainPrompt.POINTS: 1}  # quarters of a step's clips
MOST_POINTS = 4
MIN_SHARE = 0.004  # an object that covers a smaller share of a view cannot be marked there
BOX_NOISE = 0.1  # largest shift of a box's corner, as a share of the box's side
TRIES = 20

Encode = Callable[[Tensor], list[Tensor]]  # pixels [N, 3, R, R] uint8 -> the trunk's maps, finest first


@dataclass(frozen=True)
class Scene:
    """A scene's encoded views: stages, four maps [V, C, h, w]; masks [V, I, ceil(R * R / 8)] uint8, packed.

    shares [V, I] are the objects' shares of the views' pixels; `side` is R.
    """

    stages: list[Tensor]
    masks: np.ndarray
    shares: np.ndarray
    side: int

    @staticmethod
    def make(views: Views, encode: Encode, dtype: torch.dtype = torch.bfloat16) -> Scene:
        """Encode a scene's views and pack its masks."""
        masks = views.masks.cpu().numpy()
        stages = [s.to(dtype) for s in encode(views.pixels)]
        return Scene(stages, np.packbits(masks.reshape(*masks.shape[:2], -1), axis=2), masks.mean(axis=(2, 3)),
                     masks.shape[-1])

    def mask(self, view: int, thing: int) -> np.ndarray:
        """Mask [R, R] bool of one object in one view."""
        return np.unpackbits(self.masks[view, thing], count=self.side**2).reshape(self.side, self.side).astype(bool)


class SceneRing:
    """Ring buffer of the latest `size` scenes, of which `fresh` are replaced at every step."""

    def __init__(self, make: Callable[[int], Scene], *, size: int, fresh: int, step: int = 0) -> None:
        self._make, self._size, self._fresh = make, size, fresh
        self._scenes: deque[Scene] = deque(maxlen=size)
        self._next = step * fresh

    def missing(self, step: int) -> Iterable[Scene]:
        """Make the scenes that step `step` needs and the ring lacks, one at a time; the caller gives them to `add`."""
        while self._next < step * self._fresh + self._size:
            self._next += 1
            yield self._make(self._next - 1)

    def add(self, scene: Scene) -> None:
        """Add a scene in place of the oldest."""
        self._scenes.append(scene)

    @property
    def scenes(self) -> list[Scene]:
        """The ring's scenes, oldest first."""
        return list(self._scenes)


def draw_clips(scenes: list[Scene], rng: np.random.Generator, *, clips: int,
               absent: float = 0.1) -> list[PretrainClips]:
    """Draw a step's clips, a multiple of four, grouped by kind of mark; each from its own scene if there are enough.

    With probability `absent` a clip's last view comes from another scene, which lacks the object.
    """
    chosen = rng.choice(len(scenes), clips, replace=clips > len(scenes)).tolist()
    groups = []
    for kind, quarters in QUARTERS.items():
        count = clips * quarters // 4
        groups.append(draw_group(scenes, rng, kind, chosen[:count], absent))
        del chosen[:count]
    return groups


def draw_group(scenes: list[Scene], rng: np.random.Generator, kind: PretrainPrompt, chosen: Sequence[int],
               absent: float = 0.0) -> PretrainClips:
    """Draw one clip from each chosen scene; all have the same kind of mark."""
    drawn = [_draw(scenes, i, rng, absent) for i in chosen]
    masks = np.stack([m for _, m in drawn])
    points, labels = _marks(masks[:, 0], kind, rng)
    stages = [torch.cat([torch.stack([s.stages[level][v] for s, v in views]) for views, _ in drawn])
              for level in range(len(scenes[0].stages))]
    return PretrainClips(stages=stages, masks=torch.from_numpy(masks).float(), mark=kind, points=points, labels=labels)


def _draw(scenes: list[Scene], index: int, rng: np.random.Generator,
          absent: float) -> tuple[list[tuple[Scene, int]], np.ndarray]:
    """Draw a clip's views (scene, view) in random order, first one that shows the object, and the object's masks."""
    for _ in range(TRIES):
        scene = scenes[index]
        order = rng.permutation(len(scene.shares))
        things = np.nonzero(scene.shares[order[0]] > MIN_SHARE)[0]
        if len(things):
            break
        index = int(rng.integers(len(scenes)))
    else:
        raise ValueError("no scene shows an object large enough")
    thing = int(rng.choice(things))
    views = [(scene, int(v)) for v in order]
    masks = [scene.mask(int(v), thing) for v in order]
    if rng.random() < absent and len(scenes) > 1:
        other = scenes[(index + int(rng.integers(1, len(scenes)))) % len(scenes)]
        views[-1], masks[-1] = (other, int(rng.integers(len(other.shares)))), np.zeros_like(masks[-1])
    return views, np.stack(masks)


def _marks(masks: np.ndarray, kind: PretrainPrompt, rng: np.random.Generator) -> tuple[Tensor | None, Tensor | None]:
    """Points [E, P, 2] and labels [E, P] of objects [E, R, R]; none for masks. All have equally many."""
    if kind == PretrainPrompt.MASK:
        return None, None
    if kind == PretrainPrompt.BOX:
        boxes = np.stack([_box(m, rng) for m in masks]).reshape(-1, 2, 2)
        return torch.from_numpy(boxes).float(), torch.tensor([[2, 3]], dtype=torch.int32).repeat(len(masks), 1)
    wanted = [True, *(rng.random(int(rng.integers(0, MOST_POINTS))) < 0.7)]
    points = np.stack([[_point(m if inside else ~m, rng) for inside in wanted] for m in masks])
    labels = torch.tensor([[int(i) for i in wanted]], dtype=torch.int32).repeat(len(masks), 1)
    return torch.from_numpy(points).float(), labels


def _box(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    ys, xs = np.nonzero(mask)
    box = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], dtype=np.float64)
    size = np.tile(box[2:] - box[:2], 2)
    return (box + rng.normal(0, BOX_NOISE / 2, 4).clip(-BOX_NOISE, BOX_NOISE) * size).clip(0, len(mask))


def _point(mask: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    ys, xs = np.nonzero(mask)
    if not len(xs):
        return (len(mask) / 2, len(mask) / 2)
    at = rng.integers(len(xs))
    return (xs[at] + 0.5, ys[at] + 0.5)
