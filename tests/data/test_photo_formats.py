"""Photos by suffix in own data: what Pillow reads is read, the rest is named in failures.parquet."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from fss_models.photo_files import decode_image, load_oriented
from pipelines.config.data import SourceConfig
from pipelines.data.open import open_source

MASK = np.zeros((60, 80), dtype=np.uint8)
MASK[10:30, 10:40] = 255
ROWS, COLUMNS = np.indices((60, 80))
PHOTO = np.dstack([3 * COLUMNS, 4 * ROWS, 120 + ROWS - COLUMNS]).astype(np.uint8)
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)


def encoded(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PHOTO).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "WEBP", "BMP", "TIFF", "GIF", "JPEG2000", "AVIF"])
def test_every_format_gives_its_pixels(kind: str) -> None:
    found = decode_image(encoded(kind)).astype(int)
    assert found.shape == PHOTO.shape
    assert np.abs(found - PHOTO).mean() < 6


def test_the_larger_picture_of_a_stereo_photo_is_read(tmp_path: Path) -> None:
    file = io.BytesIO()
    second = Image.fromarray(PHOTO[:30, :40])
    Image.fromarray(PHOTO).save(file, "MPO", save_all=True, append_images=[second])
    assert decode_image(file.getvalue()).shape == PHOTO.shape


def test_a_photo_of_a_phone_says_what_it_needs() -> None:
    """In a process that cannot import pillow-heif."""
    script = ("import sys; sys.modules['pillow_heif'] = None\n"
              "from fss_models.photo_files import decode_image\n"
              "decode_image(sys.stdin.buffer.read())")
    done = subprocess.run([sys.executable, "-c", script], input=HEIC, capture_output=True, check=False)
    assert b"needs pillow-heif: install fss with the extra `heic`" in done.stderr


def test_a_photo_of_a_phone_is_read_upright() -> None:
    file = io.BytesIO()
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned clockwise
    pillow_heif.from_pillow(Image.fromarray(PHOTO)).save(file, exif=turned.tobytes())
    found = load_oriented(file.getvalue(), (80, 60), "upright")
    assert np.abs(np.asarray(found.image).astype(int) - np.rot90(PHOTO, -1)).mean() < 20
    assert decode_image(file.getvalue(), exif=True).shape == (80, 60, 3)


def test_own_data_reads_them_and_names_the_rest(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    written = {"a.jfif": "JPEG", "b.gif": "GIF", "c.avif": "AVIF", "d.jp2": "JPEG2000", "e.mpo": "MPO"}
    for name, kind in written.items():
        (tmp_path / "images" / name).write_bytes(encoded(kind))
        Image.fromarray(MASK).save(tmp_path / "masks" / f"{name[0]}.png")
    (tmp_path / "images" / "f.CR2").write_bytes(b"raw")
    (tmp_path / "images" / "g.heic").write_bytes(HEIC)
    Image.fromarray(MASK).save(tmp_path / "masks" / "g.png")
    source = open_source(SourceConfig(format="pairs", root=str(tmp_path)))
    assert [i.file_name for i in source.items] == [*written, "g.heic"]
    assert {f.file_name: f.reason for f in source.failures} == {
        "images/f.CR2": "photos of this format are not read: save it as JPEG or PNG"}


def test_masks_may_be_gif_and_tiff(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks" / "cup").mkdir(parents=True)
    for name, suffix in (("a", "gif"), ("b", "tif")):
        (tmp_path / "images" / f"{name}.jpg").write_bytes(encoded("JPEG"))
        Image.fromarray(MASK).save(tmp_path / "masks" / "cup" / f"{name}.{suffix}")
    source = open_source(SourceConfig(format="pairs", root=str(tmp_path)))
    for item in source.items:
        masks = source.rasterise(item, source.fetch(item), 60, 80)
        assert not masks.problems
        assert len(masks.instances) == 1
