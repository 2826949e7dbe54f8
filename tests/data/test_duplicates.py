"""Copies of photos are found across folders; photos that only share a plain background are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from fss_models.errors import FssError
from pipelines.data.duplicates import find_duplicates
from tests.fixtures.command import Fss


def picture(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (9, 12, 3), np.uint8)).resize((320, 240), Image.Resampling.BICUBIC)


def on_white(at: int) -> Image.Image:
    found = Image.new("RGB", (320, 240), "white")
    ImageDraw.Draw(found).ellipse((at, at, at + 40, at + 30), fill="red")
    return found


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    train, test = tmp_path / "train", tmp_path / "test"
    for folder in (train, test):
        (folder / "deep").mkdir(parents=True)
    for n in range(6):
        picture(n).save(train / f"{n}.png")
        picture(100 + n).save(test / f"{n}.png")
    picture(3).resize((200, 130)).save(test / "deep" / "copy.jpg", quality=40)
    picture(5).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(test / "turned.jpg")
    on_white(20).save(train / "a.png")
    on_white(150).save(train / "b.png")
    (test / "broken.jpg").write_bytes(b"no photo")
    return train, test


def test_copies_are_found_and_plain_backgrounds_are_not(folders: tuple[Path, Path]) -> None:
    """Fails if size, compression or mirroring hides a copy, or if two objects on white are called one picture."""
    pairs, unread = find_duplicates([str(f) for f in folders])
    found = {(Path(p.first).name, Path(p.second).name, p.mirrored) for p in pairs}
    assert found == {("3.png", "copy.jpg", False), ("5.png", "turned.jpg", True)}
    assert len(unread) == 1
    assert "broken.jpg" in unread[0]


def test_the_command_lists_the_pairs(folders: tuple[Path, Path], fss: Fss) -> None:
    done = fss("data", "duplicates", *map(str, folders))
    assert done.returncode == 0, done.stderr
    assert "2 pairs of photos look alike" in done.stderr
    assert "(mirrored)" in done.stderr
    assert "not read:" in done.stderr


def test_a_place_without_photos(tmp_path: Path) -> None:
    with pytest.raises(FssError, match="there are no photos"):
        find_duplicates([str(tmp_path)])
