"""Accuracy beside speed: a bundle in bfloat16 compared with float32 on the same episodes of a dataset.

The mIoU of each is over the episodes' classes, in percent. `ratio` is the CPU time of float32 to that of bfloat16, of
encoder and decoder together with decoding and scoring, which precision does not change.
"""

from __future__ import annotations

import time
from typing import Any

from fss_models.metrics import score
from pipelines.bundles.bundle import load_bundle
from pipelines.config.evaluate import EvalConfig
from pipelines.data.episodes import draw_episodes
from pipelines.data.shardset import Shards
from pipelines.evaluation.evaluate import refuse_seen_photos, score_episodes
from pipelines.evaluation.results import table_counts

CONFIG: dict[str, Any] = {"bundle": "shipped", "shards": "", "fold": 0, "shots": 1, "episodes": 500, "batch": 8,
                          "precision": "bfloat16", "device": "cpu", "threads": 2, "seed": 0}


def run(config: dict[str, Any]) -> dict[str, Any]:
    """mIoU in both precisions, their difference, and CPU seconds."""
    if not config["shards"]:
        raise SystemExit("error: precision needs shards (--set shards=URL), as `fss data build` writes them")
    model, info = load_bundle(config["bundle"], config["device"])
    shards = Shards(config["shards"])
    episodes = draw_episodes(shards, fold=config["fold"], shots=config["shots"], episodes=config["episodes"],
                             seed=config["seed"])
    refuse_seen_photos(info.seen, shards, episodes, config["bundle"])
    tables, seconds = {}, {}
    for precision in ("float32", config["precision"]):
        began = time.process_time()
        tables[precision], _ = score_episodes(model, shards, episodes, EvalConfig(
            shots=config["shots"], batch=config["batch"], precision=precision))
        seconds[precision] = time.process_time() - began
    scores = {name: 100 * score(table_counts(table), episodes.class_ids).miou for name, table in tables.items()}
    plain, reduced = scores["float32"], scores[config["precision"]]
    return {"ratio": seconds["float32"] / seconds[config["precision"]], "miou_percent": scores,
            "difference": reduced - plain, "cpu_seconds": seconds, "episodes": len(episodes),
            "classes": len(episodes.class_ids), "bundle_id": info.bundle_id}
