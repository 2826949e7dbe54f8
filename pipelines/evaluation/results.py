"""What a finished run leaves for those who come later: `result.json` and `episodes.parquet` in its folder."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import AliasChoices, Field

from fss_models.errors import FssError
from fss_models.metrics import Counts
from pipelines.base.storage import Store, join
from pipelines.config.run import RunSpec
from pipelines.config.section import Section

EPISODE_SCORES = pa.schema([
    ("episode_id", pa.int64()), ("class_id", pa.int32()),
    ("inter_bg", pa.int64()), ("inter_fg", pa.int64()), ("union_bg", pa.int64()), ("union_fg", pa.int64()),
    ("iou", pa.float64()), ("score", pa.float64()),
])


NO_EPISODES = "without_episodes"  # in `details`: names of the fold's classes that the list does not test


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
    classes: dict[str, str] = Field(default_factory=dict)  # the classes scored, id -> name
    miou: float = 0.0
    fb_iou: float = 0.0
    interval: list[float] = Field(default_factory=list)  # of the mIoU, 95 %
    per_class: dict[str, float] = Field(default_factory=dict)  # name -> IoU
    untrained: bool = False
    # of a failure: another try may succeed; results of version 0.1.0 call it `passing`
    retryable: bool = Field(False, validation_alias=AliasChoices("retryable", "passing"))
    trainable_params: int = 0
    train_s: float = 0.0
    images_per_s: float = 0.0  # encoded and segmented during evaluation, not idle: see latency for speed
    code: str = ""
    details: dict[str, Any] = Field(default_factory=dict)

    @property
    def steps(self) -> int:
        """The steps that the bundle was trained for: chosen ones, where the recipe has them chosen."""
        return int(self.details.get("selection", {}).get("steps", 0)) or self.spec.steps


def read_result(folder: str, spec: RunSpec, eval_digest: str) -> RunResult | None:
    """The run's result if it is finished and of this very configuration, else None."""
    for place in (folder, _aside(folder, eval_digest)):
        found = _read(Store(place))
        if found and found.run == spec.name and found.eval_digest == eval_digest:
            return found
    return None


def _read(store: Store) -> RunResult | None:
    try:
        return RunResult.model_validate(store.read_json("result.json")) if store.exists("result.json") else None
    except ValueError:
        return None


def _aside(folder: str, eval_digest: str) -> str:
    """Where the result of another evaluation of the same run is kept."""
    return join(folder, "evaluations", eval_digest)


def write_result(folder: str, result: RunResult, table: pa.Table) -> None:
    """Scores first, result.json last: it marks the run as finished. That of another evaluation is moved aside."""
    store = Store(folder)
    former = _read(store)
    if former and former.eval_digest != result.eval_digest and not former.error:
        aside = Store(_aside(folder, former.eval_digest))
        aside.write_table("episodes.parquet", store.read_table("episodes.parquet"))
        aside.write_json("result.json", former.model_dump())
    store.delete("result.json")  # else a kill leaves the former figures beside these counts
    store.write_table("episodes.parquet", table)
    store.write_json("result.json", result.model_dump())


def read_episodes(folder: str, result: RunResult) -> pa.Table:
    """The `EPISODE_SCORES` of a result, the run's newest or one set aside. Raises `FssError` if there are none."""
    here = _read(Store(folder))
    if here is None or here.eval_digest != result.eval_digest:
        folder = _aside(folder, result.eval_digest)
    return Store(folder).read_table("episodes.parquet")


def read_counts(folder: str, result: RunResult) -> Counts:
    """The episode counts of a finished run. Raises `FssError` if there are none."""
    return table_counts(read_episodes(folder, result), [int(c) for c in result.classes])


def table_counts(table: pa.Table, classes: Iterable[int] = ()) -> Counts:
    """`EPISODE_SCORES` rows as counts, in the order of the episode list.

    Those of `classes` that have no episode are added, each with counts of 0: they score 0, in resamples too.
    """
    if table.num_rows == 0:
        raise FssError("an evaluation without episodes")
    table = table.sort_by("episode_id")
    ids = table["class_id"].to_numpy().astype(np.int64)
    absent = np.array(sorted(set(classes) - set(ids.tolist())), dtype=np.int64)
    none = np.zeros((len(absent), 2), dtype=np.int64)
    both = (np.stack([table[f"{k}_bg"].to_numpy(), table[f"{k}_fg"].to_numpy()], axis=1) for k in ("inter", "union"))
    inter, union = (np.concatenate([one, none]) for one in both)
    return Counts(class_ids=np.concatenate([ids, absent]), inter=inter, union=union)


def untested_line(result: RunResult) -> str:
    """A line on the classes that the list does not test; empty if it tests all."""
    names = result.details.get(NO_EPISODES, [])
    if not names:
        return ""
    counted = "IoU 0" if set(names) <= result.per_class.keys() else "not in the mean"
    return f"the list of {result.run} has no episode of {', '.join(names)}: {counted}"
