"""Presence: how well a bundle's calibrator predicts whether a class is in a photo, compared with the raw predicted IoU.

Support sets of a fold's novel classes are scored on all test photos. Measured are AUROC, expected calibration error,
and precision and recall of the labels at the default threshold, both at the true prevalence, where most photos lack the
class, and as if half of the photos had it. `ratio` is the AUROC of the calibrated probability divided by that of the
predicted IoU. Needs a bundle with a calibrator (`fss calibrate`), and shards whose test photos its training did not
open. Without `bundle`, a tiny bundle is made on generated photos, in order to test this file.
"""

from __future__ import annotations

import io
import tempfile
from typing import Any

import torch

CONFIG: dict[str, Any] = {"bundle": "", "shards": "", "fold": 0, "sets": 40, "targets": 100_000, "preset": "nano",
                          "images": 80, "side": 96, "threads": 2, "seed": 0, "repeats": 1}


def run(config: dict[str, Any]) -> dict[str, Any]:
    """The figures over all pairs of support set and photo, and over pairs of sets with three shots or more."""
    with tempfile.TemporaryDirectory() as folder:
        if not config["bundle"]:
            config = config | _make_example(config, folder)
        return _measure(config)


def _measure(config: dict[str, Any]) -> dict[str, Any]:
    from fss_models.calibration_fit import opinion_of
    from pipelines.bundles.bundle import bundle_calibrator, load_bundle
    from pipelines.config.choose import CalibrateConfig
    from pipelines.data.shardset import Shards
    from pipelines.selection.calibrate import draw_sets, observe

    model, info = load_bundle(config["bundle"])
    calibrator, shards = bundle_calibrator(config["bundle"], info), Shards(config["shards"])
    if calibrator is None:
        raise SystemExit("error: the bundle has no calibrator; fit one with `fss calibrate`")
    drawn = CalibrateConfig(sets=config["sets"], targets=config["targets"], seed=config["seed"])
    draws = draw_sets(shards, shards.fold_classes(config["fold"]), drawn, split="test")
    seen = {shards.rows[i]["sha256"][:16] for d in draws for i in (*d.shots, *d.present, *d.absent)} & set(info.seen)
    if seen:
        raise SystemExit(f"error: the bundle's training opened {len(seen)} of the photos")
    rows = []
    for observed, _ in observe(model, shards, draws):
        share = float(observed.present.float().mean())
        opinion = opinion_of(calibrator, *observed.left_out) if observed.left_out else None
        rows.append({"present": observed.present, "good": observed.present & (observed.iou >= 0.5),
                     "raw": observed.measured[:, 0], "many": torch.full_like(observed.present, opinion is not None),
                     "plain": calibrator.probabilities(observed.measured)[:, 0],
                     "half": calibrator.probabilities(observed.measured, opinion),
                     "true": calibrator.probabilities(observed.measured, opinion, min(max(share, 0.001), 0.999))})
    joined = {k: torch.cat([r[k] for r in rows]) for k in rows[0]}
    every = _figures(joined)
    many = {k: v[joined["many"]] for k, v in joined.items()}
    return {"ratio": every["auroc"]["calibrated"] / every["auroc"]["predicted_iou"], "method": info.method,
            "calibrator": calibrator.about, "all": every, "figures": {"svg": _plot(every)},
            **({"three_shots_or_more": _figures(many)} if len(many["raw"]) else {})}


def _figures(found: dict[str, torch.Tensor]) -> dict[str, Any]:
    from fss_models.calibration_fit import auroc, expected_error, reliability

    present, good, raw = found["present"], found["good"], found["raw"]
    chance, true = found["half"][:, 0], found["true"][:, 0]
    half = torch.where(present, 0.5 / present.float().mean(), 0.5 / (~present).float().mean())
    even = torch.multinomial(half, 20_000, replacement=True, generator=torch.Generator().manual_seed(0))
    return {
        "pairs": len(present), "prevalence": float(present.float().mean()),
        "auroc": {"predicted_iou": auroc(raw, present), "calibrated": auroc(chance, present),
                  "without_leave_one_out": auroc(found["plain"], present)},
        "auroc_good_mask": {"predicted_iou": auroc(raw, good), "calibrated": auroc(found["half"][:, 1], good)},
        "ece_half": {"predicted_iou": expected_error(raw[even], present[even]),
                     "calibrated": expected_error(chance[even], present[even])},
        "ece_prevalence_known": {"predicted_iou": expected_error(raw, present),
                                 "calibrated": expected_error(true, present)},
        "ece_good_mask": {"predicted_iou": expected_error(raw, good),
                          "calibrated": expected_error(found["true"][:, 1], good)},
        "kept_half": _precision_recall(raw[even], chance[even], present[even]),
        "kept_prevalence_known": _precision_recall(raw, true, present),
        "reliability_prevalence_known": reliability(true, present),
        "reliability_half": reliability(chance[even], present[even]),
        "reliability_predicted_iou": reliability(raw, present),
    }


def _precision_recall(raw: torch.Tensor, chance: torch.Tensor, present: torch.Tensor) -> dict[str, Any]:
    """Precision and recall at threshold 0.5, for the predicted IoU and for the calibrated probability."""
    found = {}
    for name, positive in (("predicted_iou", raw >= 0.5), ("calibrated", chance >= 0.5)):
        right = int((positive & present).sum())
        found[name] = {"precision": right / max(int(positive.sum()), 1), "recall": right / max(int(present.sum()), 1)}
    return found


def _plot(found: dict[str, Any]) -> bytes:
    """The reliability diagram as SVG, every photo counted once; the area of a dot grows with its number of photos."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="gray", linewidth=1, linestyle="--")
    for name, label in (("reliability_prevalence_known", "calibrated"),
                        ("reliability_predicted_iou", "predicted IoU")):
        predicted, actual, count = zip(*found[name], strict=True)
        axes.plot(predicted, actual, linewidth=1)
        axes.scatter(predicted, actual, s=[8 + 300 * c / found["pairs"] for c in count], label=label)
    axes.set(xlabel="predicted probability of the class", ylabel="share of photos with the class", xlim=(0, 1),
             ylim=(0, 1), title=f"{found['pairs']} pairs of support set and photo")
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _make_example(config: dict[str, Any], folder: str) -> dict[str, Any]:
    """Make shards of generated photos and a calibrated bundle of the training-free method. Returns their settings."""
    from fss_models import registry
    from pipelines.bundles.bundle import save_bundle
    from pipelines.config.choose import CalibrateConfig
    from pipelines.config.data import DataConfig, SourceConfig
    from pipelines.data.shards import build_shards
    from pipelines.data.shardset import Shards
    from pipelines.selection.calibrate import calibrate_bundle

    data = DataConfig(source=SourceConfig(format="shapes", images=config["images"], side=config["side"]), min_images=2)
    build_shards(data, f"{folder}/shards")
    shards = Shards(f"{folder}/shards")
    base = [shards.classes[c].name for c in shards.base_classes(config["fold"])]
    save_bundle(f"{folder}/bundle", registry.build("prior", config["preset"]), classes=base)
    calibrate_bundle(f"{folder}/bundle", shards, CalibrateConfig(sets=12, targets=2))
    return {"bundle": f"{folder}/bundle", "shards": f"{folder}/shards", "sets": 4}
