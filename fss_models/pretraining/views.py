"""Pseudo-videos: several views of one photo, in which its objects move, grow, turn and change colour.

A view is one affine warp of the photo onto a square, then a change of colours. Objects cut from another photo may be
pasted into every view at places of their own, so that an object moves against its surroundings too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LabelledPhoto:
    """A photo's pixels [H, W, 3] uint8 and masks [I, H, W] bool of its objects."""

    pixels: np.ndarray
    masks: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Views:
    """V views of the same I objects: pixels [V, 3, R, R] uint8, masks [V, I, R, R] bool."""

    pixels: Tensor
    masks: Tensor


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """Settings of how much views differ.

    views   number of views of a photo
    zoom    range of the window's side as a share of the photo's side; above 1 the photo shrinks
    turn    largest rotation in degrees
    stretch largest change of the aspect ratio, as a factor
    colour  strength of brightness, contrast and saturation; `grey` is the probability of a grey view
    paste   probability that an object of another photo is pasted into all views
    """

    views: int = 3
    zoom: tuple[float, float] = (0.45, 1.15)
    turn: float = 20.0
    stretch: float = 1.3
    colour: float = 0.4
    grey: float = 0.1
    paste: float = 0.5


def shrink(photo: LabelledPhoto, side: int) -> LabelledPhoto:
    """Resize a photo and its masks to a square of `side` pixels, from which views are cut."""
    pixels = np.array(Image.fromarray(photo.pixels).resize((side, side), Image.Resampling.BILINEAR))
    masks = [np.array(Image.fromarray(m.view(np.uint8)).resize((side, side), Image.Resampling.NEAREST)) > 0
             for m in photo.masks]
    return LabelledPhoto(pixels=pixels, masks=np.stack(masks) if masks else np.zeros((0, side, side), bool))


def make_views(photo: LabelledPhoto, config: ViewConfig, rng: np.random.Generator, side: int,
               other: LabelledPhoto | None = None) -> Views:
    """Draw views of side R = `side` with `rng`; `config` decides whether an object of `other` is pasted in.

    Every view's window holds the middle of one object, which is the same in all views. Raises ValueError for a photo
    without objects.
    """
    if not len(photo.masks):
        raise ValueError("a photo without objects has no views")
    focus = _middle(photo.masks[rng.integers(len(photo.masks))], rng)
    pasted = _cut(other, rng) if other is not None and len(other.masks) and rng.random() < config.paste else None
    made = [_view(photo, focus, pasted, config, rng, side) for _ in range(config.views)]
    return Views(pixels=torch.stack([p for p, _ in made]), masks=torch.stack([m for _, m in made]))


def _view(photo: LabelledPhoto, focus: np.ndarray, pasted: LabelledPhoto | None, config: ViewConfig,
          rng: np.random.Generator, side: int) -> tuple[Tensor, Tensor]:
    pixels, masks = warp(photo, window(focus, config, rng), side)
    if pasted is not None:
        pixels, masks = _paste(pixels, masks, pasted, config, rng)
    return recolour(pixels, config, rng).round().clamp(0, 255).to(torch.uint8), masks


def window(focus: np.ndarray, config: ViewConfig, rng: np.random.Generator) -> Tensor:
    """Draw a window as an affine map [2, 3] from the view's coordinates in [-1, 1] to the photo's.

    The point `focus` [2] (x, y in [-1, 1]) stays in sight.
    """
    scale = math.exp(rng.uniform(math.log(config.zoom[0]), math.log(config.zoom[1])))
    stretch = math.exp(rng.uniform(-1, 1) * math.log(config.stretch) / 2)
    size = np.array([scale * stretch, scale / stretch])
    low, high = np.minimum(-1 + size, 1 - size), np.maximum(-1 + size, 1 - size)
    middle = rng.uniform(low, high).clip(focus - 0.9 * size, focus + 0.9 * size)
    angle = math.radians(rng.uniform(-config.turn, config.turn))
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    flip = np.diag([-1.0 if rng.random() < 0.5 else 1.0, 1.0])
    return torch.from_numpy(np.column_stack([turn @ np.diag(size) @ flip, middle])).float()


def warp(photo: LabelledPhoto, to: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Pixels [3, R, R] float in 0..255 (grey outside the photo) and masks [I, R, R] bool, seen through a window."""
    grid = F.affine_grid(to[None], [1, 1, side, side], align_corners=False)
    pixels = torch.from_numpy(photo.pixels).permute(2, 0, 1)[None].float() - 127.5
    seen = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0] + 127.5
    masks = torch.from_numpy(photo.masks)[None].float()
    return seen, F.grid_sample(masks, grid, mode="nearest", padding_mode="zeros", align_corners=False)[0] > 0.5


def recolour(pixels: Tensor, config: ViewConfig, rng: np.random.Generator) -> Tensor:
    """Change brightness, contrast and saturation of [3, R, R] in 0..255 by random factors; sometimes make it grey."""
    light, contrast, saturation = rng.uniform(1 - config.colour, 1 + config.colour, 3)
    if rng.random() < config.grey:
        saturation = 0.0
    x = pixels * light
    x = (x - x.mean()) * contrast + x.mean()
    grey = (x * x.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(dim=0, keepdim=True)
    return grey + (x - grey) * saturation


def _middle(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random pixel of the object as (x, y) in [-1, 1]."""
    ys, xs = np.nonzero(mask)
    at = rng.integers(len(xs)) if len(xs) else 0
    place = (xs[at], ys[at]) if len(xs) else (mask.shape[1] / 2, mask.shape[0] / 2)
    return (np.array(place) + 0.5) / np.array(mask.shape[::-1]) * 2 - 1


def _cut(other: LabelledPhoto, rng: np.random.Generator) -> LabelledPhoto | None:
    """Cut one object out of a photo, in a square window around it; None if it covers less than 1 % of the photo."""
    mask = other.masks[rng.integers(len(other.masks))]
    ys, xs = np.nonzero(mask)
    if len(xs) < 0.01 * mask.size:
        return None
    half = int(max(np.ptp(ys), np.ptp(xs)) / 2) + 2
    cy, cx = int(ys.min() + np.ptp(ys) / 2), int(xs.min() + np.ptp(xs) / 2)
    box = (slice(max(cy - half, 0), cy + half), slice(max(cx - half, 0), cx + half))
    return replace(other, pixels=other.pixels[box], masks=mask[box][None])


def _paste(pixels: Tensor, masks: Tensor, cut: LabelledPhoto, config: ViewConfig,
           rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Paste the object at a random place and size; its mask becomes the last, and the others lose what it hides."""
    side = pixels.shape[-1]
    share = rng.uniform(0.25, 0.6)
    middle = rng.uniform(-0.7, 0.7, 2)
    angle = math.radians(rng.uniform(-config.turn, config.turn))
    flip = -1.0 if rng.random() < 0.5 else 1.0
    c, s = math.cos(angle) / share, math.sin(angle) / share
    turn = np.array([[c * flip, -s * flip], [s, c]])
    to = torch.from_numpy(np.column_stack([turn, -turn @ middle])).float()
    above, where = warp(cut, to, side)
    covered = where[0]
    return torch.where(covered, above, pixels), torch.cat([masks & ~covered, covered[None]])
