"""Before a job: what its supports are worth, what it would take, and how its labels will look. No cluster."""

from __future__ import annotations

from dataclasses import replace

from fss_models.shipped.files import bundle_url
from pipelines.base.storage import split_url
from pipelines.base.workspace import Workspace
from pipelines.bundles.shipped import champion_url, say_if_shipped
from pipelines.config.mask_request import MaskRequest, check_overlaps
from pipelines.config.recipe import Recipe
from pipelines.inference.label_sets import read_label_set
from pipelines.inference.labeler import Labeler, PhotoLimits
from pipelines.inference.support_check import SupportReport, check_supports
from pipelines.labelling.images import list_images
from pipelines.labelling.support_sheet import Price, lines, measure_and_show, write_page


def check_before(recipe: Recipe, *, supports: str, images: str, bundle: str, count: int, price: float,
                 page: str) -> tuple[list[SupportReport], Price | None, list[str], str]:
    """What each class is worth, the price of `count` photos (0: those of `images`), lines to print, the page's URL.

    Raises `FssError` for a person's mistakes, before anything is written.
    """
    import torch

    classes = read_label_set(supports)
    config = recipe.label
    check_overlaps(config.overlaps, len(classes))
    listed = list_images(images) if images else None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    limits = PhotoLimits(max_pixels=recipe.data.max_pixels, max_bytes=recipe.data.max_bytes)
    url = bundle_url(bundle) if bundle else champion_url(Workspace(recipe.out))
    if not bundle:
        say_if_shipped(url, Workspace(recipe.out))
    labeler = Labeler(url, device, limits=limits, memories=len(classes))
    ids = tuple(labeler.add_support(one) for one in classes)
    worth = [check_supports(labeler, one) for one in classes]
    cost: Price | None = None
    shown: list[dict[str, str]] = []
    if listed:
        wanted = MaskRequest(support_ids=ids, threshold=config.threshold, overlaps=config.overlaps, pairs=config.pairs)
        if labeler.judge:
            wanted = replace(wanted, prevalence=config.prevalence, empty_below=config.empty_below,
                             review_below=config.review_below)
        cost, shown = measure_and_show(labeler, listed, wanted, count=count or len(listed), per_hour=price,
                                       batch=config.batch, names=[one.class_name for one in classes])
    store, name = split_url(page)
    store.write_bytes(name, write_page(labeler, classes, worth, cost, shown))
    told = [line for one in worth for line in lines(one)]
    if cost:
        told.append(f"{cost.images} photos at {cost.images_per_s:.1f} photos/s measured here: {cost.hours:.2f} hours"
                    + (f", {cost.cost:.2f} at {price:g} an hour" if price else ""))
        told += [f"about {share * 100:.0f} % of the photos show {name}" for name, share in cost.prevalence.items()]
        if len(cost.prevalence) == 1:
            told[-1] += f": --set label.prevalence={next(iter(cost.prevalence.values())):.2g}"
    return worth, cost, told, store.path(name)
