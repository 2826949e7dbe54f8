"""One reader for pictures of masks: of supports, of image/mask pairs, of corrections.

A mask is read as a person sees it: black, transparent and void pixels are background, all others the object. In detail:

- **lossless files** only. JPEG changes levels around every edge: it is refused, and so are lossy WebP and many pages.
- **index** (a palette whose colour 0 is black or transparent): every index but 0; 255 is void where others exist. Other
  palettes are read by their colours, whatever their order.
- **grey**: two levels, the brighter one; levels up to 20, instances or classes, 255 being void beside them; an edge or
  a blur between two levels, from half of white on (128 of 255); other levels, the instances that a program spread over
  the greys: each one. A 255 that surrounds the instances is void, and so is the grey band of a trimap.
- **colour**: every colour but black; an edge from half of its colour on; VOC's (224, 224, 192) is void.
- **alpha**: opaque pixels, where the colours alone do not show black and something else.

What cannot be told apart is refused with the reason: no background, a photo in the place of its mask.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError
from scipy import ndimage

from fss_models.errors import BadImage
from fss_models.photo_files import check_pixels

LOSSLESS = ("PNG", "BMP", "TIFF", "GIF", "WEBP")
_LOSSY = ("JPEG", "MPO", "JPEG2000", "AVIF")  # opened to say why they are refused
VOID_COLOUR = (224, 224, 192)  # VOC's
LABELS = 20  # levels up to this one are numbers of instances or classes
WHITE, DEEP_WHITE = 255, 65535
FEW, MANY, PHOTO = 8, 32, 1024  # distinct levels or colours
WINDOW = 5  # pixels: an edge has a darker and a brighter neighbour within it


@dataclass(frozen=True)
class MaskPicture:
    """A mask as it was read.

    mask: [H, W] bool; how: the rule that read it, in words; void: [H, W] bool of pixels that are neither object nor
    background, None where the picture has none. No pixel is in both.
    """

    mask: np.ndarray
    how: str
    void: np.ndarray | None = None


def read_mask_picture(data: bytes) -> MaskPicture:
    """The object of a picture of a mask, by the rules above. The mask may be empty.

    Raises `BadImage` for a file that is unreadable, lossy or too large, and for levels or colours that have no one
    meaning.
    """
    return read_mask_image(open_mask(data))


def read_mask_image(image: Image.Image) -> MaskPicture:
    """`read_mask_picture` for an image that Pillow has opened; of several pages or frames it is the one that it shows.

    Raises `BadImage` as that does; lossy WebP cannot be told from lossless.
    """
    try:
        return _of_image(_loaded(image))
    except BadImage:
        raise
    except Exception as error:  # as decoders do: palettes and transparency are only read here
        raise BadImage(f"unreadable mask: {' '.join(str(error).split())[:200]}") from error


def _of_image(image: Image.Image) -> MaskPicture:
    if image.mode in ("P", "PA"):
        return _of_palette(image)
    if image.mode == "F":
        return _of_levels(_whole_levels(np.asarray(image)))
    if image.mode.startswith("I") or (image.mode in ("1", "L") and "transparency" not in image.info):
        return _of_levels(np.array(image).astype(np.int64) * (WHITE if image.mode == "1" else 1))
    return _of_pixels(image)


def mask_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a mask file, None for an unreadable one."""
    try:
        image = open_mask(data)
    except BadImage:
        return None
    return image.height, image.width


def open_mask(data: bytes) -> Image.Image:
    """A mask or label file with its pixels decoded. Raises `BadImage` if it is unreadable, lossy or too large."""
    if not data:
        raise BadImage("empty file (0 bytes)")
    Image.init()
    try:
        image = Image.open(io.BytesIO(data), formats=(*LOSSLESS, *(f for f in _LOSSY if f in Image.OPEN)))
        check_pixels(image)
        if (pages := getattr(image, "n_frames", 1)) > 1:
            raise BadImage(f"the mask has {pages} pages or frames; save each as a PNG file of its own")
        return _loaded(image, data)
    except BadImage:
        raise
    except UnidentifiedImageError as error:
        raise BadImage("unreadable mask: not an image this program can read; save it as PNG") from error
    except Exception as error:  # decoders raise all kinds of exceptions on broken bytes
        raise BadImage(f"unreadable mask: {' '.join(str(error).split())[:200]}") from error


def _loaded(image: Image.Image, data: bytes = b"") -> Image.Image:
    """The image with its pixels decoded, in a mode of the rules; `data`: its file. Raises `BadImage` if it is lossy."""
    if lossy := _lossy(image, data):
        raise BadImage(f"{lossy} is lossy: it changes a mask around its edges; save the mask as PNG")
    image.load()
    plain = ("1", "L", "P", "PA", "LA", "RGB", "RGBA", "F")
    return image if image.mode in plain or image.mode.startswith("I") else image.convert("RGB")


def _lossy(image: Image.Image, data: bytes) -> str:
    """The name of a lossy format, "" for the others."""
    if image.format in _LOSSY:
        return "JPEG" if image.format == "MPO" else str(image.format)
    if image.format == "WEBP" and b"VP8 " in _chunks(data):
        return "lossy WebP"
    return "JPEG in TIFF" if "jpeg" in str(image.info.get("compression", "")) else ""


def _chunks(webp: bytes) -> list[bytes]:
    """The names of a WebP file's chunks."""
    names, at = [], 12
    while at + 8 <= len(webp):
        names.append(webp[at : at + 4])
        at += 8 + int.from_bytes(webp[at + 4 : at + 8], "little") // 2 * 2 + webp[at + 4] % 2 * 2
    return names


def _of_palette(image: Image.Image) -> MaskPicture:
    """Index or colour. Index 0 is the background if it is black or transparent, or if no colour is black."""
    index = np.asarray(image.getchannel(0) if image.mode == "PA" else image)
    used = np.unique(index)
    colours = np.array(image.getpalette("RGBA") or [], dtype=np.uint8).reshape(-1, 4)
    colours = np.vstack([colours, np.tile(np.array([[0, 0, 0, 255]], dtype=np.uint8), (256 - len(colours), 1))])
    shades = colours[used, :3]
    grey = bool((shades == shades[:, :1]).all()) and len(np.unique(shades[:, 0])) == len(used)
    first_is_ground = colours[0, 3] == 0 or not colours[0, :3].any()
    if grey and (len(used) > FEW or np.array_equal(shades[:, 0], used)) and "transparency" not in image.info:
        return _of_levels(colours[index, 0].astype(np.int64))
    if first_is_ground or shades.max(axis=1).min() > WHITE // 8:
        return _of_index(index)
    if len(used) > 2 and not grey:
        raise BadImage("the palette has both a colour 0 that is not black and a black colour: either may be the "
                       "background; save the mask with a palette whose colour 0 is black")
    return _of_pixels(image)


def _of_index(index: np.ndarray) -> MaskPicture:
    found = index > 0
    void = index == WHITE
    if not void.any() or not (found & ~void).any():
        return MaskPicture(found, "every palette index but 0")
    return MaskPicture(found & ~void, "every palette index but 0 and 255 (void)", void)


def _of_pixels(image: Image.Image) -> MaskPicture:
    """A picture with colours, transparency or both."""
    pixels = np.asarray(image.convert("RGBA"))
    colours, alpha = pixels[..., :3], pixels[..., 3]
    if alpha.min(initial=WHITE) == alpha.max(initial=0):
        return _of_colours(colours if alpha.max(initial=0) else np.zeros_like(colours))
    shown = _distinct_colours(colours[alpha >= min(128, int(alpha.max()))])
    if len(shown) <= FEW and shown[0] == 0 and len(shown) > 1:
        return _of_colours(np.where(alpha[..., None] >= 128, colours, 0).astype(np.uint8))
    edge = (int(alpha.max()) + 1) // 2
    return MaskPicture(alpha >= edge, f"pixels with an alpha of {edge} and more")


def _distinct_colours(colours: np.ndarray) -> np.ndarray:
    """[N] packed distinct colours of [..., 3] uint8, sorted."""
    flat = colours.reshape(-1, 3).astype(np.int64)
    packed: np.ndarray = np.flatnonzero(np.bincount((flat[:, 0] << 16) | (flat[:, 1] << 8) | flat[:, 2]))
    return packed


def _of_colours(colours: np.ndarray) -> MaskPicture:
    """[H, W, 3] uint8. A colour counts by its brightest channel, so that red is no darker than white."""
    if (colours == colours[..., :1]).all():
        return _of_levels(colours[..., 0].astype(np.int64))
    levels = colours.max(axis=2).astype(np.int64)
    void = (colours == VOID_COLOUR).all(axis=2)
    if not levels[~void].any():
        void[:] = False
    levels[void] = 0
    distinct = _distinct_colours(colours)
    scaled = levels * WHITE // int(levels.max())
    if len(distinct) > PHOTO and not _near_two_levels(scaled, WHITE):
        raise BadImage(f"the mask has {len(distinct):,} colours: it is a photo, not a mask")
    if levels.min() > WHITE // 8:
        raise BadImage(f"none of the mask's {len(distinct)} colours is black: the background has to be black")
    words = " and void" if void.any() else ""
    left_out = void if void.any() else None
    if _is_soft(scaled, WHITE):
        return MaskPicture(scaled >= 128, "colours from half of the brightest on", left_out)
    return MaskPicture(levels > levels[~void].min(), f"every colour but black{words}", left_out)


def _whole_levels(values: np.ndarray) -> np.ndarray:
    """Floating-point levels as whole numbers; shares from 0 to 1 become levels of 255."""
    if not np.isfinite(values).all():
        raise BadImage("the mask has levels that are not numbers (NaN or infinite)")
    if values.min(initial=0) >= 0 and values.max(initial=0) <= 1:
        return np.ceil(values * WHITE - 0.5).astype(np.int64)
    if not np.array_equal(values, np.round(values)):
        raise BadImage("the mask has levels with fractions that are not shares from 0 to 1")
    return values.astype(np.int64)


def _of_levels(levels: np.ndarray) -> MaskPicture:
    """[H, W] int64 of grey levels or numbers."""
    distinct = np.unique(levels)
    if distinct[0] < 0:
        raise BadImage(f"the mask has negative levels ({distinct[0]})")
    low, top = int(distinct[0]), int(distinct[-1])
    white = WHITE if top <= WHITE else DEEP_WHITE
    half = (white + 1) // 2
    if len(distinct) == 1:
        return MaskPicture(levels > 0, "one level")
    if len(distinct) == 2 and (low == 0 or low < half <= top):
        return MaskPicture(levels == top, f"level {top}")
    if low == 0 and all(v <= LABELS or v == white for v in distinct):
        return _of_numbers(levels, distinct, white, sure=True)
    if top > LABELS and top <= white and _is_soft(levels, white):
        edge = half if top >= half else (top + 1) // 2
        return MaskPicture(levels >= edge, f"levels from {edge} on")
    if low > 0:
        raise BadImage(f"no pixel of the mask is background (0): its levels are {_some(distinct)}")
    return _of_numbers(levels, distinct, white, sure=False)


def _of_numbers(levels: np.ndarray, distinct: np.ndarray, white: int, *, sure: bool) -> MaskPicture:
    """Levels that are numbers of instances or classes. Void is white; if that is not sure, where it is all around."""
    inner = (levels > 0) & (levels < white)
    bright, ground = levels == white, levels == 0
    void = np.zeros_like(inner)
    if bright.any() and inner.any():
        if sure or _touching(inner, bright) > _touching(inner, ground):
            void = bright
        if len(distinct) == 3 and abs(2 * int(distinct[1]) - white) <= 3:  # black, grey and white
            void = inner if not _touching(bright, ground) else np.zeros_like(inner)
    numbers = np.unique(levels[(levels > 0) & ~void])
    found, how = (levels > 0) & ~void, f"{len(numbers)} level{'s' * (len(numbers) > 1)} ({_some(numbers)})"
    if not void.any():
        return MaskPicture(found, how)
    return MaskPicture(found, f"{how} without void ({_some(np.unique(levels[void]))})", void)


def _touching(one: np.ndarray, other: np.ndarray) -> int:
    """How many pairs of neighbours have one pixel in each mask."""
    pairs = ((one[1:], other[:-1]), (one[:-1], other[1:]), (one[:, 1:], other[:, :-1]), (one[:, :-1], other[:, 1:]))
    return sum(int((a & b).sum()) for a, b in pairs)


def _is_soft(levels: np.ndarray, white: int) -> bool:
    """Whether the levels between the darkest and the brightest are an edge, a blur or noise, not instances."""
    distinct = np.unique(levels)
    middle = (levels > distinct[0]) & (levels < distinct[-1])
    if not middle.any():
        return False
    if len(distinct) > FEW and _near_two_levels(levels, white):
        return True
    small = levels.astype(np.int32)
    low, high = (f(small, WINDOW, mode="nearest") for f in (ndimage.minimum_filter, ndimage.maximum_filter))
    if (middle & (low < levels) & (levels < high)).sum() > middle.sum() / 2:
        return True
    if len(distinct) <= MANY:
        return False
    steps = np.concatenate([np.abs(np.diff(levels, axis=a)).ravel() for a in (0, 1)])
    return bool(np.median(steps[steps > 0]) <= white // 64)


def _near_two_levels(levels: np.ndarray, white: int) -> bool:
    """Whether nearly all pixels are almost black or almost white, as in a mask that was a JPEG once."""
    between = (levels > white // 8) & (levels < white - white // 8)
    return bool(between.sum() * 4 <= (levels > white // 2).sum())


def _some(values: np.ndarray) -> str:
    shown = ", ".join(str(int(v)) for v in values[:4])
    return shown if len(values) <= 4 else f"{shown}, ... {int(values[-1])}"
