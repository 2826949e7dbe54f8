"""Pictures for the analyses beyond those of `pipelines.pages`: feature maps, clicks, histograms."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from pipelines.data.schema import EpisodeSample
from pipelines.pages.curves import FOLD_COLOURS, as_svg, new_figure
from pipelines.pages.pictures import PREDICTION, SIDE, SUPPORT, TRUTH, photo_url, png_bytes

CLICK, DOT = (190, 18, 60), 6  # colour of a click, and its radius in pixels of the picture
LEGEND = tuple((f"rgb{colour}", what) for colour, what in
               ((SUPPORT, "support mask"), (TRUTH, "truth"), (PREDICTION, "prediction")))
Curve = tuple[Sequence[float], Sequence[float]]  # n + 1 bin edges, n heights


def marked_photos(sample: EpisodeSample) -> list[tuple[str, str]]:
    """(caption, data URL) of the first support and of the query, with the masks of the dataset."""
    reference, target = sample.references[0], sample.targets[0]
    return [("support", photo_url(reference.image, reference.mask, SUPPORT)),
            ("query, truth", photo_url(target.image, target.mask, TRUTH))]


def map_url(colours: np.ndarray, shape: tuple[int, int]) -> str:
    """A colour map [h, w, 3] uint8 as a PNG data URL, stretched to the aspect of a photo of `shape` (H, W)."""
    scale = SIDE / max(shape)
    size = (max(1, round(shape[1] * scale)), max(1, round(shape[0] * scale)))
    return _png(Image.fromarray(colours).resize(size, Image.Resampling.NEAREST))


def click_url(image: np.ndarray, mask: np.ndarray, points: np.ndarray) -> str:
    """A photo with its mask, as `photo_url` draws them, and a dot at each of `points` [P, 2] (x, y); a PNG data URL."""
    url = photo_url(image, mask, PREDICTION)
    picture = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    pen, scale = ImageDraw.Draw(picture), SIDE / max(image.shape[:2])
    for x, y in ((points + 0.5) * scale).tolist():
        pen.ellipse((x - DOT, y - DOT, x + DOT, y + DOT), fill=CLICK, outline=(255, 255, 255), width=2)
    return _png(picture)


def _png(picture: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(png_bytes(picture)).decode()


def histograms(curves: Mapping[str, Curve], title: str, label: str) -> str:
    """Several histograms in one plot, as inline SVG; `label` is the x axis's."""
    figure, axes = new_figure(4.6, 2.7)
    for i, (name, (edges, heights)) in enumerate(curves.items()):
        colour = FOLD_COLOURS[i % len(FOLD_COLOURS)]
        axes.stairs(heights, edges, label=name, color=colour, linewidth=1.6, fill=False)
        axes.stairs(heights, edges, color=colour, alpha=0.18, fill=True)
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(label)
    axes.set_yticks([])
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    return as_svg(figure, title)
