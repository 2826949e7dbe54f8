"""Results of finished runs: `result.json` and `episodes.parquet` in the folder of a run."""

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
    """The content of result.json. A failed run has `error` and no scores."""

    run: str
    spec: RunSpec
    eval_digest: str
    error: str = ""
    bundle: str = ""  # URL
    bundle_id: str = ""
    list_hash: str = ""
    episodes: int = 0
    classes: dict[str, str] = Field(default_factory=dict)  # classes that count in the score, id -> name
    miou: float = 0.0
    fb_iou: float = 0.0
    interval: list[float] = Field(default_factory=list)  # 95 % interval of the mIoU
    per_class: dict[str, float] = Field(default_factory=dict)  # name -> IoU
    untrained: bool = False
    # after a failure: whether another try may succeed; in results of version 0.1.0 the field is `passing`
    retryable: bool = Field(False, validation_alias=AliasChoices("retryable", "passing"))
    trainable_params: int = 0
    train_s: float = 0.0
    images_per_s: float = 0.0  # during the evaluation, on a machine that was not idle; latency.json has the idle speed
    code: str = ""
    precision: str = "float32"  # that the scores were computed in
    details: dict[str, Any] = Field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Number of steps that the bundle was trained for: the chosen one, if `train.selection` chose it."""
        return int(self.details.get("selection", {}).get("steps", 0)) or self.spec.steps


def read_result(folder: str, spec: RunSpec, eval_digest: str) -> RunResult | None:
    """The run's result if it is finished and of exactly this configuration and evaluation, else None."""
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
    """Folder with the result of an evaluation of the run other than the newest."""
    return join(folder, "evaluations", eval_digest)


def write_result(folder: str, result: RunResult, table: pa.Table) -> None:
    """Write the episode scores, then result.json, which marks the run as finished.

    An earlier result of another evaluation is moved to `evaluations/` first.
    """
    store = Store(folder)
    former = _read(store)
    if former and former.eval_digest != result.eval_digest and not former.error:
        aside = Store(_aside(folder, former.eval_digest))
        aside.write_table("episodes.parquet", store.read_table("episodes.parquet"))
        aside.write_json("result.json", former.model_dump())
    store.delete("result.json")  # otherwise a kill could leave the former result beside the new counts
    store.write_table("episodes.parquet", table)
    store.write_json("result.json", result.model_dump())


def read_episodes(folder: str, result: RunResult) -> pa.Table:
    """The `EPISODE_SCORES` of a result, the run's newest or an earlier one. Raises `FssError` if there are none."""
    here = _read(Store(folder))
    if here is None or here.eval_digest != result.eval_digest:
        folder = _aside(folder, result.eval_digest)
    return Store(folder).read_table("episodes.parquet")


def read_counts(folder: str, result: RunResult) -> Counts:
    """The episode counts of a finished run. Raises `FssError` if there are none."""
    return table_counts(read_episodes(folder, result), [int(c) for c in result.classes])


def table_counts(table: pa.Table, classes: Iterable[int] = ()) -> Counts:
    """`EPISODE_SCORES` rows as counts, in the order of the episode list.

    Classes of `classes` without an episode are added with counts of 0: they score 0, in resamples too. Raises
    `FssError` for an empty table.
    """
    if table.num_rows == 0:
        raise FssError("the evaluation has no episodes")
    table = table.sort_by("episode_id")
    ids = table["class_id"].to_numpy().astype(np.int64)
    absent = np.array(sorted(set(classes) - set(ids.tolist())), dtype=np.int64)
    none = np.zeros((len(absent), 2), dtype=np.int64)
    both = (np.stack([table[f"{k}_bg"].to_numpy(), table[f"{k}_fg"].to_numpy()], axis=1) for k in ("inter", "union"))
    inter, union = (np.concatenate([one, none]) for one in both)
    return Counts(class_ids=np.concatenate([ids, absent]), inter=inter, union=union)


def untested_line(result: RunResult) -> str:
    """A line about classes without test episodes; empty if every class has some."""
    names = result.details.get(NO_EPISODES, [])
    if not names:
        return ""
    counted = "counted as IoU 0" if set(names) <= result.per_class.keys() else "left out of the mean"
    return f"{result.run}: the episode list has no episode of {', '.join(names)} ({counted})"
