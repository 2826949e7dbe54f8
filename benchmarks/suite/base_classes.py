"""Settings of a method that does not train, compared on base classes: none of the tested classes is looked at.

For each fold, episodes of base classes are drawn from train photos that show no novel class (those of
`train.selection: base-holdout`), and every candidate is scored on the same episodes. The figure of a candidate is the
mean over folds of its mIoU; the largest wins. `candidates` are configurations of the method, `classes` base classes a
fold are drawn. Shards are built in `out` where they are missing.
"""

from __future__ import annotations

from typing import Any

import torch

from fss_models import registry
from fss_models.metrics import score
from pipelines.config.evaluate import EvalConfig
from pipelines.config.train import SelectConfig, TrainConfig
from pipelines.data.ensure import ensure_shards
from pipelines.data.folds import FoldData
from pipelines.evaluation.evaluate import score_episodes
from pipelines.evaluation.results import table_counts
from pipelines.evaluation.steps import draw_held_out_episodes

CONFIG: dict[str, Any] = {"recipe": "nano_pascal5i", "sets": [], "out": "out/base_classes", "method": "gf_sam",
                          "preset": "nano", "candidates": [{}], "folds": [0, 1, 2, 3], "shots": 1, "classes": 8,
                          "episodes": 40, "threads": 1}


def run(config: dict[str, Any]) -> dict[str, Any]:
    """For each candidate the mIoU of each fold's base classes and their mean; the candidate with the largest mean."""
    from jobs.recipes import load_recipe

    torch.set_num_threads(config["threads"])
    recipe = load_recipe(config["recipe"], [*config["sets"], f"out={config['out']}"])
    shards = ensure_shards(recipe)
    train = TrainConfig(shots=config["shots"], selection="base-holdout",
                        select=SelectConfig(classes=config["classes"], episodes=config["episodes"]))
    rows = []
    lists = {fold: draw_held_out_episodes(FoldData.open(shards.url, fold), train) for fold in config["folds"]}
    for candidate in config["candidates"]:
        model = registry.build(config["method"], config["preset"], candidate).eval()
        each = {}
        for fold, episodes in lists.items():
            table, _ = score_episodes(model, shards, episodes, EvalConfig(shots=config["shots"], batch=40))
            each[fold] = score(table_counts(table, episodes.class_ids), episodes.class_ids).miou
        rows.append({"candidate": candidate, "miou": each, "mean": sum(each.values()) / len(each)})
    best = max(rows, key=lambda r: r["mean"])
    return {"candidates": rows, "chosen": best["candidate"], "mean": best["mean"],
            "lists": {fold: one.sha256 for fold, one in lists.items()}}
