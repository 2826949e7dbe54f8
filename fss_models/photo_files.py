"""From the bytes of an image file to pixels. The files may be broken or hostile.

Sizes are checked in the header, before any pixel is decoded, unless `limits` is None, as for the photos of shards,
which passed them when the shards were built. Transparent pixels are blended with white, as viewers show them. EXIF
rotation: some datasets annotate the photo as stored, others as rotated. So `decode_sized` rotates only if the recorded
size requires it (COCO's own tools ignore EXIF); a user's photo is always rotated (`exif=True`). `load_oriented` decides
for the photos of a source, by the rule of its format (`Orientation`).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fss_models.errors import BadImage
from fss_models.limits import LIMITS, PhotoLimits

# Only these decoders of Pillow are used. HEIF comes with pillow-heif (the extra `heic`), AVIF with Pillow from 11.3 on.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "TIFF", "GIF", "JPEG2000", "AVIF", "HEIF")
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".jpe", ".jfif", ".mpo", ".gif", ".jp2",
                  ".avif", ".heic", ".heif")
# Photos and drawings that are not read: cameras' raw files would give their small preview.
UNREAD_SUFFIXES = (".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".rw2", ".srw", ".dcm", ".eps",
                   ".exr", ".hdr", ".ico", ".jxl", ".psd", ".svg", ".svs", ".tga")
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # EXIF tag; its values that swap height and width

_TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
          5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
          8: Image.Transpose.ROTATE_90}  # EXIF's value -> what makes such a photo upright

# How the photos of a source relate to its annotations.
# recorded: as stored unless only the turned photo has the recorded size. Where both have it (square photos, photos
#     turned by 180 degrees or mirrored) as stored, because the tools of these formats (COCO's, VOC's) ignore EXIF.
# upright: turned unless only the stored photo has the recorded size, because the tools of these formats (browsers,
#     Ultralytics, LabelMe, CVAT) show and read photos upright. Where both have it: turned.
# apply, ignore: turned, as stored, whatever the format; a photo of another recorded size is refused.
Orientation = Literal["recorded", "upright", "apply", "ignore"]


@dataclass(frozen=True)
class OrientedPhoto:
    """A decoded photo, as its annotations see it.

    tagged: its file has an EXIF orientation; turned: that was applied; implied: `decode_sized` finds the same pixels
    from the size alone.
    """

    image: Image.Image
    tagged: bool
    turned: bool
    implied: bool


def is_photo(name: str) -> bool:
    """Whether a file is read as a photo, by its suffix."""
    return name.lower().endswith(PHOTO_SUFFIXES)


def decode_image(data: bytes, *, limits: PhotoLimits = LIMITS, exif: bool = False, where: str = "") -> np.ndarray:
    """The pixels of an image file, [H, W, 3] uint8. With `exif` the photo is rotated by its EXIF orientation.

    Raises `BadImage` for a file that is empty, unreadable, truncated or too large.
    """
    return np.array(load_image(data, limits=limits, exif=exif, where=where))


def load_image(data: bytes, *, limits: PhotoLimits = LIMITS, exif: bool = False, where: str = "") -> Image.Image:
    """`decode_image` as a Pillow image, without a copy of the pixels. Raises `BadImage` as it does."""
    return rgb_image(_open(data, limits, where), exif=exif, where=where)


def decode_reduced(data: bytes, least: int, *, limits: PhotoLimits = LIMITS, where: str = ""
                   ) -> tuple[np.ndarray, tuple[int, int]]:
    """A photo, upright, that may be smaller than its file says, and its full (height, width).

    A JPEG is decoded at 1/8, 1/4 or 1/2 of its size where both sides still have `least` pixels, which its transform
    gives cheaply and without aliasing. Raises `BadImage` as `decode_image` does.
    """
    image = _open(data, limits, where)
    size = _upright_size(image)
    image.draft(None, (least, least))  # type: ignore[arg-type]
    return np.array(rgb_image(image, exif=True, where=where)), size


def decode_sized(
    data: bytes, height: int, width: int, *, limits: PhotoLimits | None = LIMITS, where: str = ""
) -> np.ndarray:
    """The pixels, [height, width, 3] uint8: as stored if the file has the recorded size, else rotated by EXIF.

    Raises `BadImage` as `decode_image` does, and if neither orientation has the recorded size.
    """
    return np.array(load_sized(data, height, width, limits=limits, where=where))


def decode_square(
    data: bytes, height: int, width: int, side: int, *, crop: Sequence[int] | None = None,
    limits: PhotoLimits | None = LIMITS, where: str = ""
) -> np.ndarray:
    """`decode_sized`, or its `crop` (x0, y0, x1, y1), resized to [side, side, 3] uint8 like `published` preprocessing.

    The array is read-only, which saves a copy. Raises `BadImage` as `decode_sized` does.
    """
    image = load_sized(data, height, width, limits=limits, where=where)
    if crop:
        image = image.crop((crop[0], crop[1], crop[2], crop[3]))
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))


def load_sized(
    data: bytes, height: int, width: int, *, limits: PhotoLimits | None = LIMITS, where: str = ""
) -> Image.Image:
    """`decode_sized` as a Pillow image, without a copy of the pixels. Raises `BadImage` as it does."""
    image = _open(data, limits, where)
    turn = _rotation_for(image, height, width)
    if turn is None:
        raise BadImage(f"recorded as {width}x{height} but the photo is {image.width}x{image.height}", where=where)
    return rgb_image(image, exif=turn, where=where)


def load_oriented(
    data: bytes, size: tuple[int, int] | None, rule: Orientation, *, limits: PhotoLimits = LIMITS, where: str = ""
) -> OrientedPhoto:
    """The photo, turned or as stored by `rule`; `size`: its recorded (height, width), None if there is none.

    Raises `BadImage` as `decode_image` does, and if the photo does not have the recorded size.
    """
    image = _open(data, limits, where)
    turned, shown = _turned_by(image, size, rule, where)
    implied = _rotation_for(image, *shown) == turned
    return OrientedPhoto(rgb_image(image, exif=turned, where=where), _orientation(image) != 1, turned, implied)


def annotated_frame(
    data: bytes, size: tuple[int, int] | None, rule: Orientation, *, limits: PhotoLimits = LIMITS, where: str = ""
) -> tuple[tuple[int, int], Image.Transpose | None]:
    """(height, width) that annotations refer to, and how their masks are turned to fit the upright photo (None: not).

    It reads the header alone, with the rules and errors of `load_oriented`.
    """
    image = _open(data, limits, where)
    turned, shown = _turned_by(image, size, rule, where)
    return shown, None if turned else _TURNS.get(_orientation(image))


def _turned_by(image: Image.Image, size: tuple[int, int] | None, rule: Orientation,
               where: str) -> tuple[bool, tuple[int, int]]:
    """Whether the photo is turned by `rule`, and the (height, width) that it then has. Raises `BadImage`."""
    value = _orientation(image)
    stored, upright = (image.height, image.width), _upright_size(image)
    if rule == "recorded":
        turned = size is not None and size != stored
    elif rule == "upright":
        turned = size is None or size == upright or size != stored
    else:
        turned = rule == "apply"
    turned, shown = turned and value != 1, upright if turned else stored
    if size is not None and size != shown:
        forced = f" with data.source.exif={rule}" if value != 1 and rule in ("apply", "ignore") else ""
        found = stored if value == 1 or rule in ("recorded", "upright") else shown
        raise BadImage(f"recorded as {size[1]}x{size[0]} but the photo is {found[1]}x{found[0]}{forced}", where=where)
    return turned, shown


def image_size(data: bytes, *, where: str = "") -> tuple[int, int]:
    """(height, width) as stored, read from the header alone. Raises `BadImage` if it is unreadable."""
    image = _open(data, None, where)
    return image.height, image.width


def turned_size(data: bytes, *, where: str = "") -> tuple[int, int]:
    """(height, width) after EXIF rotation, read from the header alone. Raises `BadImage` if it is unreadable."""
    return _upright_size(_open(data, None, where))


def _open(data: bytes, limits: PhotoLimits | None, where: str) -> Image.Image:
    if not data:
        raise BadImage("empty file (0 bytes)", where=where)
    if limits and len(data) > limits.max_bytes:
        raise BadImage(f"file of {len(data):,} bytes is over the limit of {limits.max_bytes:,}", where=where)
    try:
        image = Image.open(io.BytesIO(data), formats=_decoders())
    except Image.DecompressionBombError as error:
        raise BadImage("far too many pixels (a decompression bomb)", where=where) from error
    except UnidentifiedImageError as error:
        raise BadImage(_why_unread(data), where=where) from error
    except Exception as error:  # decoders raise all kinds of exceptions on broken bytes
        raise BadImage(_failure_reason(error), where=where) from error
    if limits:
        check_pixels(image, limits, where)
    return image


def check_pixels(image: Image.Image, limits: PhotoLimits = LIMITS, where: str = "") -> None:
    """Raises `BadImage` for an image with too many pixels, by its header."""
    if image.width * image.height > limits.max_pixels:
        raise BadImage(f"{image.width}x{image.height} pixels are over the limit of {limits.max_pixels:,}", where=where)


@cache
def _decoders() -> tuple[str, ...]:
    """The formats whose decoders are installed."""
    Image.init()  # registers WEBP and TIFF; without it Image.open raises KeyError for them
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    return tuple(f for f in FORMATS if f in Image.OPEN)


def _why_unread(data: bytes) -> str:
    kind = data[8:12] if data[4:8] == b"ftyp" else b""
    if kind in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1") and "HEIF" not in _decoders():
        return "a HEIC photo, which needs pillow-heif: install fss with the extra `heic`, or save the photo as JPEG"
    if kind in (b"avif", b"avis") and "AVIF" not in _decoders():
        return "an AVIF photo, which needs Pillow from 11.3 on"
    return "not an image this program can read"


def rgb_image(image: Image.Image, *, exif: bool = False, where: str = "") -> Image.Image:
    """The image with all pixels decoded, in 8-bit RGB; with `exif` it is rotated by its EXIF orientation.

    Raises `BadImage` for pixels that cannot be decoded or have no agreed range.
    """
    try:
        image.load()
        return _rgb(_transposed(image) if exif else image)
    except Image.DecompressionBombError as error:
        raise BadImage("far too many pixels (a decompression bomb)", where=where) from error
    except BadImage as error:
        raise BadImage(error.reason, where=where) from error
    except Exception as error:
        raise BadImage(_failure_reason(error), where=where) from error


def _failure_reason(error: Exception) -> str:
    return "truncated file" if "truncated" in str(error).lower() else f"corrupt data: {error}"


def _upright_size(image: Image.Image) -> tuple[int, int]:
    return (image.width, image.height) if _orientation(image) in _TURNED else (image.height, image.width)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8. It is 1 for TIFF files, which Pillow turns by itself."""
    try:
        value = int(image.getexif().get(_ORIENTATION, 1))
        return value if 1 <= value <= 8 and image.format != "TIFF" else 1
    except Exception:  # a photo with a broken EXIF block is still usable
        return 1


def _transposed(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image) if _orientation(image) != 1 else image


def _rotation_for(image: Image.Image, height: int, width: int) -> bool | None:
    """Whether to rotate so that the image has the recorded size; None if it cannot."""
    if (image.height, image.width) == (height, width):
        return False
    if _orientation(image) in _TURNED and (image.width, image.height) == (height, width):
        return True
    return None


def _rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as 8-bit RGB. Raises `BadImage` for floating-point pixels."""
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
    """16-bit grey levels scaled to 8 bits (65535 becomes 255). Raises `BadImage` for larger or negative levels."""
    if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise BadImage("grey levels of more than 16 bits")
    return ((values * 255 + 32767) // 65535).astype(np.uint8)
