"""Photos that show the same picture: in two datasets, twice in one, or in what is tested and what is trained on.

A photo's signature says, for each of 16 x 16 places, whether it gets brighter to the right and downwards there. It does
not change with size, compression or brightness. A mirrored copy is found too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from fss_models.errors import BadImage, FssError
from fss_models.photo_files import decode_reduced, is_photo
from pipelines.base.progress import Bar
from pipelines.base.storage import Store

GRID = 16
MARGIN = 2  # of 255: smaller steps of brightness are noise of compression
BITS = 2 * GRID * GRID
LIKE = 0.25  # largest share of differing bits of a pair; unlike photos have about 0.67
FEWEST = 24  # set bits: a photo of one colour is like any other
ROWS = 2048  # photos compared at a time with all others


@dataclass(frozen=True, order=True)
class LikePair:
    """Two photos that look alike: the share of differing bits among those that either has, and their URLs."""

    differing: float
    first: str
    second: str
    mirrored: bool = False


def find_duplicates(places: Sequence[str], *, like: float = LIKE, threads: int = 8) -> tuple[list[LikePair], list[str]]:
    """All pairs of photos below the folders `places` that look alike, the most similar first, and unreadable photos.

    A pair is given once. Raises `FssError` for a place without photos.
    """
    urls = list(dict.fromkeys(url for place in places for url in _photos(Store(place))))
    kept: list[tuple[str, np.ndarray]] = []
    unread = []
    with ThreadPoolExecutor(threads) as pool, Bar("reading photos", len(urls), unit="photos") as bar:
        for url, found in zip(urls, pool.map(_read, urls), strict=True):
            bar.step(1)
            if isinstance(found, str):
                unread.append(found)
            elif found[0].sum() >= FEWEST:
                kept.append((url, found))
    if not kept:
        return [], unread
    return sorted(_pairs(np.stack([s for _, s in kept], 1), [url for url, _ in kept], like)), unread


def _photos(store: Store) -> Iterable[str]:
    found = [store.path(name) for name in sorted(store.list()) if is_photo(name)]
    if not found:
        raise FssError("there are no photos", where=store.url, hint="give a folder or s3://bucket/prefix with photos")
    return found


def _read(url: str) -> np.ndarray | str:
    try:
        pixels = decode_reduced(Store(url).read_bytes(), 8 * GRID, where=url)[0]
    except (BadImage, FssError) as error:
        return str(error)
    return np.stack([signature(pixels), signature(pixels[:, ::-1])])


def signature(pixels: np.ndarray) -> np.ndarray:
    """The signature, [BITS] bool, of a photo [H, W, 3] uint8."""
    grey = Image.fromarray(pixels).convert("L")
    across, down = (np.asarray(grey.resize(size, Image.Resampling.BOX), np.int16)
                    for size in ((GRID + 1, GRID), (GRID, GRID + 1)))
    return np.concatenate([(np.diff(across, axis=1) > MARGIN).ravel(), (np.diff(down, axis=0) > MARGIN).ravel()])


def _pairs(signatures: np.ndarray, urls: list[str], like: float) -> Iterator[LikePair]:
    """signatures: of the photos and of their mirror images, [2, photos, BITS]. A part of all pairs is in memory."""
    counts = signatures.sum(2)
    for start in range(0, len(urls), ROWS):
        rows, rest = slice(start, start + ROWS), signatures[0, start:].astype(np.float32).T
        common = [side[rows].astype(np.float32) @ rest for side in signatures]
        straight, mirror = (1 - c / (own[rows, None] + counts[0, None, start:] - c)
                            for c, own in zip(common, counts, strict=True))
        least = np.minimum(straight, mirror)
        for i, j in np.argwhere(least <= like):
            if i < j:
                yield LikePair(differing=float(round(least[i, j], 3)), first=urls[start + i], second=urls[start + j],
                               mirrored=bool(mirror[i, j] < straight[i, j]))
