"""Constants of a method without training, chosen on base classes: mIoU of each combination on each fold.

A method's published constants fit its encoder. For another encoder (`nano`) they are chosen anew, fold by fold, on
episodes of base classes from train photos that show no novel class, as `train.selection=base-holdout` draws them: no
class that the fold tests is seen, and no test photo. `ratio` is the mean over folds of the mIoU of each fold's own
choice, divided by that of the published constants. Without `shards`, generated photos test this file.
"""

from __future__ import annotations

import hashlib
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

Encoded = dict[str, torch.Tensor]
CONFIG: dict[str, Any] = {"method": "insid3", "preset": "nano", "published": {"tau": 0.6, "merge_threshold": 0.2},
                          "grid": {"tau": [0.4, 0.5, 0.6], "merge_threshold": [0.02, 0.05, 0.1]},
                          "shards": [], "folds": [0, 1, 2, 3], "shots": 1, "episodes": 60, "classes": 25, "threads": 1,
                          "seed": 0, "images": 60, "side": 96, "repeats": 1}


def run(config: dict[str, Any]) -> dict[str, Any]:
    """The mIoU of each combination on each fold, and each fold's best combination."""
    with tempfile.TemporaryDirectory() as folder:
        places = config["shards"] or [_generated(config, folder)]
        values = itertools.product(*config["grid"].values())
        choices = [dict(zip(config["grid"], each, strict=True)) for each in values]
        folds = [_fold(config, url, fold, choices) for url in places for fold in config["folds"]]
    best = sum(max(f["miou"]) for f in folds)
    return {"ratio": best / max(sum(f["published"] for f in folds), 1e-9), "choices": choices, "folds": folds,
            "mean_miou": [sum(f["miou"][i] for f in folds) / len(folds) for i in range(len(choices))]}


def _fold(config: dict[str, Any], url: str, fold: int, choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The scores of all combinations on one fold's base classes."""
    from fss_models.errors import FssError
    from pipelines.config.train import SelectConfig, TrainConfig
    from pipelines.data.folds import FoldData
    from pipelines.evaluation.steps import draw_held_out_episodes

    encoded: Encoded = {}
    data, classes = FoldData.open(url, fold), config["classes"]
    while True:  # as many classes as the fold can hold out
        select = SelectConfig(classes=classes, episodes=config["episodes"], seed=config["seed"])
        try:
            episodes = draw_held_out_episodes(data, TrainConfig(shots=config["shots"], selection="base-holdout",
                                                                select=select))
            break
        except FssError:
            if classes == 1:
                raise
            classes -= 1
    mious = [_score(config, data, episodes, choice, encoded) for choice in [config["published"], *choices]]
    best = max(range(len(choices)), key=mious[1:].__getitem__)
    return {"shards": Path(url).name, "fold": fold, "classes": len(set(episodes.class_ids)), "published": mious[0],
            "list": episodes.sha256[:12], "miou": mious[1:], "chosen": choices[best]}


def _score(config: dict[str, Any], data: Any, episodes: Any, settings: dict[str, Any], encoded: Encoded) -> float:
    """mIoU of the method with these settings; `encoded` keeps what its frozen encoder computed, which all share."""
    from fss_models import registry
    from fss_models.metrics import score
    from pipelines.config.evaluate import EvalConfig
    from pipelines.evaluation.evaluate import score_episodes
    from pipelines.evaluation.results import table_counts

    model: Any = registry.build(config["method"], config["preset"], settings, seed=config["seed"]).eval()
    if hasattr(model, "encoder"):
        _remember(model.encoder, encoded)
    table, _ = score_episodes(model, data.shards, episodes, EvalConfig(shots=config["shots"]))
    return float(score(table_counts(table), episodes.class_ids).miou)


def _remember(encoder: Any, encoded: Encoded) -> None:
    """Let a frozen encoder compute each photo once."""
    compute = encoder.forward

    def remembered(pixels: torch.Tensor) -> torch.Tensor:
        names = [hashlib.sha256(one.numpy().tobytes()).hexdigest() for one in pixels]
        if new := [i for i, name in enumerate(names) if name not in encoded]:
            encoded.update(zip([names[i] for i in new], compute(pixels[new]), strict=True))
        return torch.stack([encoded[name] for name in names])

    encoder.forward = remembered


def _generated(config: dict[str, Any], folder: str) -> str:
    """The URL of shards of generated photos."""
    from pipelines.config.data import DataConfig, SourceConfig
    from pipelines.data.shards import build_shards

    source = SourceConfig(format="shapes", images=config["images"], side=config["side"])
    build_shards(DataConfig(name="shapes", source=source), url := f"{folder}/shards")
    return url
