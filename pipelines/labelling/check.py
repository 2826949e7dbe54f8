"""A check before a job, without a cluster: the quality of its supports, its time and cost, and some predictions."""

from __future__ import annotations

from fss_models.shipped.files import bundle_url
from pipelines.base.storage import Store
from pipelines.base.workspace import Workspace
from pipelines.bundles.shipped import champion_url, say_if_shipped
from pipelines.config.mask_request import MaskRequest, check_overlaps
from pipelines.config.recipe import Recipe
from pipelines.inference.label_sets import read_label_set
from pipelines.inference.labeler import Labeler
from pipelines.inference.support_check import SupportReport, check_supports
from pipelines.inference.supports import support_lines, words_line
from pipelines.labelling.images import list_images
from pipelines.labelling.inputs import list_columns
from pipelines.labelling.support_sheet import CostEstimate, measure_and_show, render_sheet, report_lines
from pipelines.serving.spec import labeler_computing


def check_label_job(recipe: Recipe, *, supports: str, images: str, bundle: str, count: int, price: float,
                    page: str) -> tuple[list[SupportReport], CostEstimate | None, list[str], str]:
    """Check the supports of a job and write the page.

    Returns a report for each class, the cost of `count` photos (0: those of `images`) at `price` an hour, lines to
    print, and the page's URL. Raises `FssError` for a person's mistakes, before anything is written.
    """
    import torch

    classes = read_label_set(supports)
    config = recipe.label
    check_overlaps(config.overlaps, len(classes))
    listed = list_images(images, columns=list_columns(config)) if images else None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    url = bundle_url(bundle) if bundle else champion_url(Workspace(recipe.out))
    if not bundle:
        say_if_shipped(url, Workspace(recipe.out))
    labeler = Labeler(url, device, limits=recipe.data.limits, memories=len(classes), **labeler_computing(config))
    ids = tuple(labeler.add_support(one) for one in classes)
    reports = [check_supports(labeler, one) for one in classes]
    cost: CostEstimate | None = None
    shown: list[dict[str, str]] = []
    if listed:
        request = MaskRequest(support_ids=ids, **config.wanted())
        batch = 8 if config.batch == "auto" else config.batch
        cost, shown = measure_and_show(labeler, listed, request, count=count or len(listed), per_hour=price,
                                       batch=batch, names=[one.class_name for one in classes])
    sheet = Store(page)
    sheet.write_bytes("", render_sheet(labeler, classes, reports, cost, shown))
    words = words_line(labeler.info.method, classes, reads=labeler.reads_names)
    lines = [*support_lines(classes), words, *(line for report in reports for line in report_lines(report))]
    if cost:
        lines.append(f"{cost.images} photos take about {cost.hours:.2f} hours at {cost.images_per_s:.1f} photos/s, "
                     "measured here" + (f", and cost {cost.cost:.2f} at {price:g} an hour" if price else ""))
        lines += [f"about {share * 100:.0f} % of the photos show {name}" for name, share in cost.prevalence.items()]
        if len(cost.prevalence) == 1:
            lines[-1] += f" (--set label.prevalence={next(iter(cost.prevalence.values())):.2g})"
    return reports, cost, lines, sheet.url
