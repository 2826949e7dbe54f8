"""What a finished run leaves for those who come later: `result.json` and `episodes.parquet` in its folder."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from fss_models.errors import FssError
from fss_models.metrics import Counts
from pipelines.config import Section
from pipelines.storage import Store
from pipelines.training.run import RunSpec

EPISODE_SCORES = pa.schema([
    ("episode_id", pa.int64()), ("class_id", pa.int32()),
    ("inter_bg", pa.int64()), ("inter_fg", pa.int64()), ("union_bg", pa.int64()), ("union_fg", pa.int64()),
    ("iou", pa.float64()), ("score", pa.float64()),
])


class RunResult(Section):
    """The content of result.json; `error` alone is set for a failed run."""

    run: str
    spec: RunSpec
    eval_digest: str
    error: str = ""
    bundle: str = ""  # URL
    bundle_id: str = ""
    list_hash: str = ""
    episodes: int = 0
    classes: dict[str, str] = Field(default_factory=dict)  # the fold's classes, id -> name
    miou: float = 0.0
    fb_iou: float = 0.0
    interval: list[float] = Field(default_factory=list)  # of the mIoU, 95 %
    per_class: dict[str, float] = Field(default_factory=dict)  # name -> IoU
    untrained: bool = False
    trainable_params: int = 0
    train_s: float = 0.0
    images_per_s: float = 0.0  # encoded and segmented during evaluation, not idle: see latency for speed
    code: str = ""
    details: dict[str, Any] = Field(default_factory=dict)


def read_result(folder: str, spec: RunSpec, eval_digest: str) -> RunResult | None:
    """The run's result if it is finished and of this very configuration, else None."""
    store = Store(folder)
    if not store.exists("result.json"):
        return None
    try:
        result = RunResult.model_validate(store.read_json("result.json"))
    except ValueError:
        return None
    return result if result.run == spec.name and result.eval_digest == eval_digest else None


def write_result(folder: str, result: RunResult, table: pa.Table) -> None:
    """Scores first, result.json last: it marks the run as finished."""
    store = Store(folder)
    store.write_table("episodes.parquet", table)
    store.write_json("result.json", result.model_dump())


def read_counts(folder: str) -> Counts:
    """The episode counts of a finished run. Raises `FssError` if there are none."""
    return table_counts(Store(folder).read_table("episodes.parquet"))


def table_counts(table: pa.Table) -> Counts:
    """`EPISODE_SCORES` rows as counts, in the order of the episode list."""
    if table.num_rows == 0:
        raise FssError("an evaluation without episodes")
    table = table.sort_by("episode_id")
    both = (np.stack([table[f"{k}_bg"].to_numpy(), table[f"{k}_fg"].to_numpy()], axis=1) for k in ("inter", "union"))
    inter, union = both
    return Counts(class_ids=table["class_id"].to_numpy().astype(np.int64), inter=inter, union=union)
