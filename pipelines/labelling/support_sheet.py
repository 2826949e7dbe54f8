"""The page of `fss support check`: the quality of the supports, time and cost, and a contact sheet of predictions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from fss_models.calibration_fit import estimate_prevalence
from fss_models.errors import BadImage
from fss_models.marks import mark_prompt
from fss_models.photo_files import decode_image
from pipelines.config.mask_request import MaskRequest
from pipelines.data import rle
from pipelines.inference.labeler import Labeler
from pipelines.inference.masks import Labels, PhotoFailure
from pipelines.inference.support_check import NegativeWorth, SupportReport
from pipelines.inference.supports import Support, SupportSet, decode_support
from pipelines.labelling.images import ImageList, PhotoReader
from pipelines.pages.pictures import SUPPORT, photo_url, picture
from pipelines.pages.template import page_template

SHOWN = 32  # photos of the contact sheet
COLOURS = ((249, 115, 22), (59, 130, 246), (16, 185, 129), (217, 70, 239), (234, 179, 8), (239, 68, 68))
OFF = COLOURS[-1]  # of what negative supports mark
SIDE = 240  # pixels of a picture's longer side


@dataclass(frozen=True, kw_only=True)
class CostEstimate:
    """The estimated time and cost of labelling `images` photos on this machine, at `per_hour` (0: unknown)."""

    images: int
    images_per_s: float
    hours: float
    per_hour: float
    cost: float
    prevalence: dict[str, float]  # class -> estimated share of the photos that show it; empty if uncalibrated


def measure_and_show(labeler: Labeler, images: ImageList, request: MaskRequest, *, count: int, per_hour: float,
                     batch: int, names: Sequence[str]) -> tuple[CostEstimate | None, list[dict[str, str]]]:
    """Label `SHOWN` photos spread over the folder. Returns the cost of `count` photos, and the pictures of the sheet.

    The first batch is labelled twice, and only the second time is measured. There is no cost if no photo is readable.
    """
    rows = sorted({int(i) for i in np.linspace(0, len(images) - 1, min(SHOWN, len(images)))})
    reader = PhotoReader(images, max_bytes=labeler.limits.max_bytes, threads=4)
    data = [reader.read(range(row, row + 1))[0] for row in rows]
    reader.close()
    photos = [(images.names[row], d) for row, d in zip(rows, data, strict=True) if isinstance(d, bytes)]
    if not photos:
        return None, []
    contents = [d for _, d in photos]
    labeler.label_classes(contents[:batch], request, batch)
    began = time.perf_counter()
    results = labeler.label_classes(contents, request, batch)
    rate = len(photos) / (time.perf_counter() - began)
    hours = count / rate / 3600
    cost = CostEstimate(images=count, images_per_s=rate, hours=hours, per_hour=per_hour, cost=hours * per_hour,
                        prevalence=_prevalence([r for r in results if not isinstance(r, PhotoFailure)], request,
                                               names))
    shown = [_shown(name, d, result, names) for (name, d), result in zip(photos, results, strict=True)]
    return cost, [one for one in shown if one]


def _prevalence(results: Sequence[Labels], request: MaskRequest, names: Sequence[str]) -> dict[str, float]:
    """Class -> share of the photos that show it, estimated from the calibrator's probabilities for these photos."""
    prior, found = torch.tensor(request.prevalence).logit(), {}
    for number, name in enumerate(names):
        presences = [labels[number].presence for labels in results]
        chances = torch.tensor([p for p in presences if p is not None])
        if len(chances):
            found[name] = estimate_prevalence(chances.clamp(1e-6, 1 - 1e-6).logit() - prior)
    return found


def _shown(name: str, data: bytes, result: Labels | PhotoFailure, names: Sequence[str]) -> dict[str, str]:
    short = name.rsplit("/", 1)[-1]
    if isinstance(result, PhotoFailure):
        return {"caption": f"{short}: {result.reason}", "url": ""}
    try:
        image: Any = decode_image(data, exif=True)
    except BadImage as error:
        return {"caption": f"{short}: {error.reason}", "url": ""}
    captions = []
    for number, label in enumerate(result):
        sure = f" {label.presence:.2f} {label.status}" if label.presence is not None else f" {label.score:.2f}"
        if label.area:
            mask = rle.decode(label.counts.encode(), label.height, label.width).astype(bool)
            image = np.asarray(picture(image, mask, COLOURS[number % len(COLOURS)], side=SIDE))
        if label.area or len(result) == 1:
            captions.append(f"{names[number]}{sure}")
    return {"caption": f"{short}: {', '.join(captions) or 'nothing'}", "url": photo_url(image, side=SIDE)}


def render_sheet(labeler: Labeler, classes: Sequence[SupportSet], reports: Sequence[SupportReport],
                 cost: CostEstimate | None, shown: list[dict[str, str]]) -> bytes:
    """The HTML page; it loads nothing from elsewhere."""
    template = page_template("pipelines.labelling", "support_sheet.html")
    pictures = [[(_support_url(s), s.negative) for s in one.supports] for one in classes]
    info = labeler.info
    calibrator = labeler.judge.calibrator.about if labeler.judge else None
    return template.render(
        classes=list(zip(reports, pictures, strict=True)), price=asdict(cost) if cost else None,
        shown=shown, info=info, calibrator=calibrator).encode()


def _support_url(support: Support) -> str:
    prompt = mark_prompt(support.mark)
    mask = prompt.mask.numpy() if prompt.mask is not None else None
    return photo_url(decode_support(support.image), mask, OFF if support.negative else SUPPORT, side=SIDE)


def report_lines(report: SupportReport) -> list[str]:
    """The lines that the command prints about one class."""
    if report.miou is None:
        return [f"{report.class_name}: {report.shots} supports; a score needs two supports, one of them with a mask"]
    span = f" ({report.interval[0] * 100:.0f} to {report.interval[1] * 100:.0f})" if report.interval else ""
    found = [f"{report.class_name}: leave-one-out mIoU {report.miou * 100:.1f}{span} with {report.shots} supports"]
    found += [f"  support {i + 1} hurts: without it the IoU of the others is {-report.influence[i] * 100:.1f} higher"
              for i in report.hurting]
    found += [f"  support {i + 1} is unlike the others (IoU {report.scores[i] * 100:.0f}): check its mask"
              for i in report.odd if i not in report.hurting]
    if report.negatives is not None:
        found += _negative_lines(report.negatives)
    if report.one_more is not None:
        found.append(f"  one more support would change the mIoU by about {report.one_more * 100:+.1f}, by the trend")
    return found


def _negative_lines(worth: NegativeWorth) -> list[str]:
    span = f" ({worth.interval[0] * 100:+.1f} to {worth.interval[1] * 100:+.1f})" if worth.interval else ""
    found = [f"  {worth.count} negative support{'s' * (worth.count > 1)} {worth.verdict}: mIoU {worth.gain * 100:+.1f}"
             f"{span}, without {worth.without * 100:.1f}"]
    if worth.found is not None and worth.found_without is not None:
        found.append(f"  of what a negative support marks, {worth.found * 100:.1f} % is taken for the object; without "
                     f"the other negatives {worth.found_without * 100:.1f} %")
    return found
