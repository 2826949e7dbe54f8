"""The gallery of a labelling job: pages with its labels, the most doubtful first.

A page has a bounded size, contains its pictures and loads nothing. People accept and reject with keys or buttons; the
browser stores the decisions until they are saved as a file for `fss review decide --from`.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from typing import Any

import numpy as np
from PIL import Image

from fss_models.errors import BadImage, FssError
from pipelines.base.storage import Store
from pipelines.data import rle
from pipelines.labelling.decisions import Decisions, apply_decision, count_decisions
from pipelines.labelling.formats.outline import polygons
from pipelines.labelling.instance_decisions import numbered
from pipelines.pages.pictures import photo_url
from pipelines.pages.template import page_template
from pipelines.review.doubt import MOST, DoubtOrder, agreement, order_by_doubt, rows_at
from pipelines.review.job import ReviewedJob, Row

PAGE = 48  # labels a page
SIDE = 320  # pixels of a picture's longer side
GRID = 160  # cells of the longer side on which outlines of instances are drawn
READERS = 4


def write_review(job: ReviewedJob, out: str, *, most: int = MOST, undecided: bool = False) -> tuple[str, int]:
    """Write the pages below `out`. Returns the path or URL of the first page, and the number of pages.

    Raises `FssError` if nothing is labelled yet, or, with `undecided`, if there are decisions about all labels.
    """
    decisions = job.decisions
    order = order_by_doubt(job, most=most, exclude=decisions if undecided else None)
    if not len(order):
        raise FssError("there is no label to review", where=job.out.url,
                       hint="every label has a decision" if undecided and job.chunks else "nothing is labelled yet")
    store, pages = Store(out), -(-len(order) // PAGE)
    template = page_template("pipelines.review", "review.html")
    with ThreadPoolExecutor(READERS, thread_name_prefix="review") as pool:
        for page in range(pages):
            rows = rows_at(job, order, range(page * PAGE, min((page + 1) * PAGE, len(order))))
            cards = list(pool.map(lambda row: _card(job, row, decisions), rows))
            store.write_bytes(page_name(page), template.render(**_about(job, order, decisions), cards=cards, page=page,
                                                               pages=pages, name=page_name).encode())
    return store.path(page_name(0)), pages


def page_name(page: int) -> str:
    """The file name of a page, counted from 0."""
    return f"review-{page + 1:04d}.html"


def _about(job: ReviewedJob, order: DoubtOrder, decisions: Decisions) -> dict[str, Any]:
    manifest = job.manifest
    script = files("pipelines.review").joinpath("review.js").read_text(encoding="utf-8")
    return {"script": script,
            "title": manifest.title, "manifest": manifest, "shown": len(order), "total": order.total,
            "counts": count_decisions(decisions), "photos": manifest.images_count,
            "done": sum(len(manifest.rows(c)) for c in job.chunks),
            "job": f"{manifest.images_hash}-{'-'.join(manifest.mask_request.support_ids)[:80]}-{manifest.redoes}"}


def _card(job: ReviewedJob, row: Row, decisions: Decisions) -> dict[str, Any]:
    decision = decisions.get((row["image_id"], row["class_name"]))
    return {"id": row["image_id"], "image": row["file_name"], "class_name": row["class_name"],
            "sure": agreement(row), "calibrated": row.get("quality") is not None, "empty": not row["area"],
            "compared": row.get("existing_iou") is not None,
            "decision": decision.decision if decision else "",
            **_picture(job, apply_decision(numbered(row), decision if decision and decision.mask else None))}


def _picture(job: ReviewedJob, row: Row) -> dict[str, Any]:
    try:
        pixels = job.pixels(row["image_id"], row["file_name"])
    except (FssError, BadImage) as error:
        return {"url": "", "problem": str(error), "objects": []}
    theirs = _mask(row, "existing_rle") if row.get("existing_rle") else None
    if row.get("instances") is not None:
        return {"url": photo_url(pixels, outline=theirs, side=SIDE), "problem": "", **_outlines(row)}
    mask = _mask(row, "rle") if row["area"] else None
    return {"url": photo_url(pixels, mask, outline=theirs, side=SIDE), "problem": "", "objects": []}


def _mask(row: Row, key: str) -> np.ndarray:
    return rle.decode(row[key].encode(), row["height"], row["width"])


def _outlines(row: Row) -> dict[str, Any]:
    """The outlines of a row's instances as paths of an SVG picture, and the picture's width and height."""
    scale = GRID / max(row["height"], row["width"])
    size = max(1, round(row["width"] * scale)), max(1, round(row["height"] * scale))
    found = []
    for one in row["instances"]:
        mask = Image.fromarray(rle.decode(one["rle"].encode(), row["height"], row["width"]).astype(np.uint8) * 255)
        small = np.asarray(mask.resize(size, Image.Resampling.BILINEAR)) > 127
        path = "".join("M" + "L".join(f"{x} {y}" for x, y in loop.tolist()) + "Z" for loop in polygons(small))
        found.append({"number": one.get("number"), "path": path})
    return {"objects": found, "size": size}

