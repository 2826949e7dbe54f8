"""Every kind of image a bucket holds, made with real encoders."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from fss_models.errors import BadImage
from fss_models.limits import PhotoLimits
from fss_models.photo_files import decode_image, decode_reduced, decode_sized, image_size


def _bytes(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.fixture
def photo() -> Image.Image:
    y, x = np.mgrid[0:40, 0:60]
    return Image.fromarray(np.stack([x * 4, y * 6, x + y], axis=2).astype(np.uint8))


def _close(a: np.ndarray, b: np.ndarray, by: float = 6) -> bool:
    return a.shape == b.shape and float(np.abs(a.astype(int) - b.astype(int)).mean()) < by


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_plain_formats(photo: Image.Image, kind: str) -> None:
    assert _close(decode_image(_bytes(photo, kind)), np.asarray(photo))
    assert image_size(_bytes(photo, kind)) == (40, 60)


def test_zero_bytes() -> None:
    with pytest.raises(BadImage, match="0 bytes"):
        decode_image(b"")


def test_not_an_image() -> None:
    with pytest.raises(BadImage, match="not an image"):
        decode_image(b"<html>not found</html>" * 20)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated(kind: str, share: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8))
    data = _bytes(noise, kind)
    with pytest.raises(BadImage) as caught:
        decode_image(data[: int(len(data) * share)])
    assert caught.value.reason.startswith(("truncated", "corrupt"))


def test_a_damaged_header() -> None:
    with pytest.raises(BadImage):
        decode_image(b"\xff\xd8\xff\xe0" + b"\x00" * 100)


def _bomb(side: int) -> bytes:
    """A PNG of side x side pixels in a few kilobytes, written without ever holding them."""
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packer, body = zlib.compressobj(9), b""
    for _ in range(side):
        body += packer.compress(b"\0" * (1 + side // 8))
    body += packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 20_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused_by_its_header(side: int) -> None:
    """100 megapixels: over our limit. 400 megapixels: over PIL's own, which raises while opening."""
    data = _bomb(side)
    assert len(data) < 100_000
    with pytest.raises(BadImage, match=r"over the limit|bomb"):
        decode_image(data)


def test_more_bytes_than_allowed(photo: Image.Image) -> None:
    data = _bytes(photo)
    with pytest.raises(BadImage, match="over the limit"):
        decode_image(data, limits=PhotoLimits(max_bytes=len(data) - 1))


def test_cmyk_jpeg(photo: Image.Image) -> None:
    data = _bytes(photo.convert("CMYK"), "JPEG", quality=95)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    assert _close(decode_image(data), np.asarray(photo), by=12)


def test_sixteen_bit_png_is_scaled() -> None:
    """Would catch clipping at 255, which turns nearly every pixel white."""
    levels = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    data = _bytes(Image.fromarray(levels))
    decoded = decode_image(data)
    assert np.array_equal(decoded[..., 0].ravel(), np.round(levels / 257).astype(np.uint8).ravel())
    assert np.array_equal(decoded[..., 0], decoded[..., 2])


def test_palette_png(photo: Image.Image) -> None:
    assert _close(decode_image(_bytes(photo.quantize(128))), np.asarray(photo), by=12)


def test_transparent_palette_is_laid_on_white() -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([0, 0, 0, 200, 0, 0])
    image.putpixel((1, 1), 1)
    decoded = decode_image(_bytes(image, transparency=0))
    assert decoded[0, 0].tolist() == [255, 255, 255]
    assert decoded[1, 1].tolist() == [200, 0, 0]


def test_grey_and_alpha() -> None:
    assert decode_image(_bytes(Image.new("L", (3, 2), 90))).tolist() == np.full((2, 3, 3), 90).tolist()
    assert decode_image(_bytes(Image.new("1", (3, 2), 1)))[0, 0].tolist() == [255, 255, 255]
    half = decode_image(_bytes(Image.new("RGBA", (2, 2), (0, 0, 0, 128))))
    assert half[0, 0].tolist() == [127, 127, 127]
    assert decode_image(_bytes(Image.new("LA", (2, 2), (10, 0))))[0, 0].tolist() == [255, 255, 255]


def _turned(photo: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return _bytes(photo, "JPEG", exif=exif, quality=95)


def test_exif_rotation_only_where_asked(photo: Image.Image) -> None:
    data = _turned(photo, 6)
    assert decode_image(data).shape == (40, 60, 3)
    turned = decode_image(data, exif=True)
    assert _close(turned, np.rot90(np.asarray(photo), -1))


def test_the_recorded_size_decides_the_orientation(photo: Image.Image) -> None:
    data = _turned(photo, 6)
    assert decode_sized(data, 40, 60).shape == (40, 60, 3)
    assert _close(decode_sized(data, 60, 40), np.rot90(np.asarray(photo), -1))
    with pytest.raises(BadImage, match="recorded as 41x60"):
        decode_sized(data, 60, 41)


def test_a_broken_exif_block_is_no_reason_to_refuse(photo: Image.Image) -> None:
    data = _bytes(photo, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    assert decode_image(data, exif=True).shape == (40, 60, 3)


def test_a_reduced_jpeg_is_upright_and_says_its_full_size() -> None:
    """It has at least the pixels asked for, and looks like the photo; another format is decoded whole."""
    pixels = np.zeros((1200, 1600, 3), dtype=np.uint8)
    pixels[:600, :800] = (200, 40, 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees when shown
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", exif=exif)
    reduced, size = decode_reduced(out.getvalue(), 256)
    whole = decode_image(out.getvalue(), exif=True)
    assert size == whole.shape[:2] == (1600, 1200)
    assert reduced.shape == (400, 300, 3)
    assert np.abs(reduced.astype(int) - whole[2::4, 2::4]).mean() < 3
    assert decode_reduced(out.getvalue(), 601)[0].shape == (1600, 1200, 3)
    plain = io.BytesIO()
    Image.fromarray(pixels).save(plain, "PNG")
    assert (decode_reduced(plain.getvalue(), 64)[0] == pixels).all()
    with pytest.raises(BadImage, match="truncated"):
        decode_reduced(out.getvalue()[:3000], 64)
