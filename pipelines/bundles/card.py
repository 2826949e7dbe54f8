"""The model card of a bundle: the README.md of its repository on the hub, made from bundle.json and its files alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.resources import files as resources

import jinja2
from safetensors.torch import load as load_tensors

from fss_models.bundle import CALIBRATOR, TENSORS, BundleInfo, parse_calibrator
from fss_models.shipped.files import check_frozen

CARD = "README.md"


def model_card(info: BundleInfo, files: Mapping[str, bytes], url: str, *, licence: str = "",
               data_licence: str = "") -> str:
    """The card of the bundle `info` with its `files`, which is to be at `url` on the hub.

    `licence`: the hub's short name of the bundle's licence; `data_licence`: terms of the photos, in words. Equal
    arguments give equal text. Raises `FssError` if the bundle's shipped weights are not installed, or its calibrator is
    not the one that `info` names.
    """
    crossed, held = info.metrics.get("cross_validated"), info.metrics.get("held_out_images")
    calibrator = parse_calibrator(info, files[CALIBRATOR], url) if info.calibrator else None
    tensors = load_tensors(files[TENSORS]).values() if files[TENSORS] else ()
    facts = {
        "info": info, "url": url, "name": _name(info, url), "licence": licence,
        "data_licence": data_licence, "crossed": crossed, "held": held, "about": calibrator.about if calibrator else {},
        "values": sum(t.numel() for t in tensors), "size": len(files[TENSORS]), "datasets": _datasets(info),
        "hidden": sorted({c for names in info.provenance.get("hidden_classes", {}).values() for c in names}),
        "shipped": check_frozen(info.frozen, url), "percent": _percent,
        "hashes": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    return f"---\n{_metadata(info, url, licence)}\n---\n\n{_template().render(facts)}"


def _metadata(info: BundleInfo, url: str, licence: str) -> str:
    """The head of the card, by which the hub lists and filters."""
    from huggingface_hub import EvalResult, ModelCardData

    crossed = info.metrics.get("cross_validated")
    figures = [EvalResult(task_type="image-segmentation", dataset_type=info.dataset, dataset_name=info.dataset,
                          metric_type="mean_iou", metric_name="mIoU of unseen classes, cross-validated",
                          metric_value=round(crossed["miou"], 4))] if crossed and info.dataset else None
    return ModelCardData(license=licence or None, library_name="fss", pipeline_tag="image-segmentation",
                         tags=["few-shot-segmentation", info.method, info.preset],
                         model_name=_name(info, url) if figures else None, eval_results=figures).to_yaml()


def _datasets(info: BundleInfo) -> list[str]:
    mixed = [str(part.get("shards", "")) for part in info.provenance.get("spec", {}).get("mixture", [])]
    return [f"`{name.rstrip('/').rpartition('/')[2]}`" for name in (info.dataset, *mixed) if name]


def _name(info: BundleInfo, url: str) -> str:
    return url.rpartition("/")[2].partition("@")[0] or info.method


def _percent(share: float) -> str:
    return f"{share * 100:.1f}"


def _template() -> jinja2.Template:
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined,
                                     keep_trailing_newline=True, autoescape=False)  # Markdown, which the hub cleans
    environment.filters["percent"] = _percent
    return environment.from_string(resources(__package__ or "").joinpath("card.md.j2").read_text(encoding="utf-8"))
