"""Photos that show a red ball and a blue brick, or one of them, and supports of both classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.serving.helpers import ball, encoded

CLASSES = ("ball", "brick")


def scene(seed: int, *, with_brick: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A photo [160, 220, 3] uint8 and the masks [160, 220] bool of ball and brick."""
    photo, mask = ball(seed, 160, 220)
    brick = np.zeros_like(mask)
    if with_brick:
        top, left = np.random.default_rng(seed).integers(5, 100, 2)
        brick[top:top + 45, left:left + 50] = ~mask[top:top + 45, left:left + 50]
    photo[brick] = [30, 60, 220]
    return photo, mask, brick


def photo_folder(folder: Path, count: int = 4) -> list[Path]:
    """The paths of `count` lossless photos; the last one shows no brick."""
    folder.mkdir()
    places = [folder / f"{i}.png" for i in range(count)]
    for i, place in enumerate(places):
        place.write_bytes(encoded(scene(i, with_brick=i < count - 1)[0], "PNG"))
    return places


def supports_folder(folder: Path) -> str:
    """A folder with a folder for each class, with a photo and its mask."""
    photo, *masks = scene(100)
    for name, mask in zip(CLASSES, masks, strict=True):
        (folder / name).mkdir(parents=True)
        (folder / name / "a.jpg").write_bytes(encoded(photo, quality=95))
        (folder / name / "a.png").write_bytes(encoded(mask.astype(np.uint8) * 255, "PNG"))
    return str(folder)
