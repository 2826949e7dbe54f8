"""From the bytes of an image file to pixels, whatever a camera, a scanner or an attacker wrote into it.

Sizes are checked in the header, before a pixel is decoded. Transparency is laid on white, as viewers show it.
EXIF rotation: datasets store annotations in one orientation or the other, so `decode_sized` lets the recorded size
decide and never rotates where both fit (COCO's own tools ignore EXIF); a user's photo is rotated (`exif=True`).
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fss_models.errors import BadImage

MAX_PIXELS = 50_000_000
MAX_BYTES = 64_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")  # fewer decoders, fewer surprises
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # EXIF tag; its values that swap height and width


def decode_image(
    data: bytes, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES, exif: bool = False, where: str = ""
) -> np.ndarray:
    """[H, W, 3] uint8. With `exif` the photo is turned as its EXIF orientation says.

    Raises `BadImage` for an empty, unreadable, truncated or too large file.
    """
    return np.array(load_image(data, max_pixels=max_pixels, max_bytes=max_bytes, exif=exif, where=where))


def load_image(
    data: bytes, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES, exif: bool = False, where: str = ""
) -> Image.Image:
    """The same as Pillow's image, which costs no copy of its pixels."""
    return _loaded(_open(data, max_pixels, max_bytes, where), exif, where)


def decode_sized(
    data: bytes, height: int, width: int, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES, where: str = ""
) -> np.ndarray:
    """[height, width, 3] uint8: as stored if that is the recorded size, else turned by EXIF.

    Raises `BadImage`, also when neither orientation has the recorded size.
    """
    return np.array(load_sized(data, height, width, max_pixels=max_pixels, max_bytes=max_bytes, where=where))


def decode_square(
    data: bytes, height: int, width: int, side: int, *, crop: Sequence[int] | None = None,
    max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES, where: str = ""
) -> np.ndarray:
    """[side, side, 3] uint8: `decode_sized`, or its `crop` (x0, y0, x1, y1), resized as `published` preprocessing does.

    Cannot be written to: the pixels are copied as seldom as can be. Raises `BadImage`.
    """
    image = load_sized(data, height, width, max_pixels=max_pixels, max_bytes=max_bytes, where=where)
    if crop:
        image = image.crop((crop[0], crop[1], crop[2], crop[3]))
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))


def load_sized(
    data: bytes, height: int, width: int, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES, where: str = ""
) -> Image.Image:
    """`decode_sized` as Pillow's image, which costs no copy of its pixels."""
    image = _open(data, max_pixels, max_bytes, where)
    turn = _turn_for(image, height, width)
    if turn is None:
        raise BadImage(f"recorded as {width}x{height} but the photo is {image.width}x{image.height}", where=where)
    return _loaded(image, turn, where)


def image_size(data: bytes, *, where: str = "") -> tuple[int, int]:
    """(height, width) as stored, from the header alone. Raises `BadImage`."""
    image = _open(data, None, None, where)
    return image.height, image.width


def turned_size(data: bytes, *, where: str = "") -> tuple[int, int]:
    """(height, width) after EXIF rotation, from the header alone. Raises `BadImage`."""
    image = _open(data, None, None, where)
    return (image.width, image.height) if _orientation(image) in _TURNED else (image.height, image.width)


def _open(data: bytes, max_pixels: int | None, max_bytes: int | None, where: str) -> Image.Image:
    if not data:
        raise BadImage("empty file (0 bytes)", where=where)
    if max_bytes is not None and len(data) > max_bytes:
        raise BadImage(f"file of {len(data):,} bytes is over the limit of {max_bytes:,}", where=where)
    Image.init()  # Pillow registers WEBP and TIFF only then; asking for them before is a KeyError
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BadImage("far too many pixels (a decompression bomb)", where=where) from error
    except UnidentifiedImageError as error:
        raise BadImage("not an image this program can read", where=where) from error
    except Exception as error:  # decoders of foreign bytes raise whatever they like
        raise BadImage(_told(error), where=where) from error
    pixels = image.width * image.height
    if max_pixels is not None and pixels > max_pixels:
        raise BadImage(f"{image.width}x{image.height} pixels are over the limit of {max_pixels:,}", where=where)
    return image


def _loaded(image: Image.Image, exif: bool, where: str) -> Image.Image:
    """All pixels, in RGB."""
    try:
        image.load()
        return _rgb(_transposed(image) if exif else image)
    except Image.DecompressionBombError as error:
        raise BadImage("far too many pixels (a decompression bomb)", where=where) from error
    except BadImage as error:
        raise BadImage(error.reason, where=where) from error
    except Exception as error:
        raise BadImage(_told(error), where=where) from error


def _told(error: Exception) -> str:
    return "truncated file" if "truncated" in str(error).lower() else f"corrupt data: {error}"


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a broken EXIF block is no reason to refuse the photo
        return 1


def _transposed(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image) if _orientation(image) != 1 else image


def _turn_for(image: Image.Image, height: int, width: int) -> bool | None:
    """Whether to rotate so that the image has the recorded size; None if it cannot."""
    if (image.height, image.width) == (height, width):
        return False
    if _orientation(image) in _TURNED and (image.width, image.height) == (height, width):
        return True
    return None


def _rgb(image: Image.Image) -> Image.Image:
    """An 8-bit RGB image from any mode."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F":
        raise BadImage("floating point pixels have no agreed range")
    if image.mode.startswith("I"):
        return Image.fromarray(_eight_bits(np.asarray(image).astype(np.int64))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        top = image.convert("RGBA")
        white = Image.new("RGBA", top.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, top).convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """16-bit grey levels scaled to 8 bits: 65535 becomes 255."""
    if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise BadImage("grey levels of more than 16 bits")
    return ((values * 255 + 32767) // 65535).astype(np.uint8)
