"""The figures of a table that are known so far: ours, its interval, the published figure and their difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fss_models.metrics import MethodCounts, Metric, interval, paired_difference, resampled_scores
from pipelines.evaluation.results import RunResult
from pipelines.papers.tables.cells import CellRecord, TableCell
from pipelines.papers.tables.config import MEASURES, PublishedTable, TableColumn


@dataclass(frozen=True, kw_only=True)
class TableFigure:
    """The figures of one cell, for one fold or for the mean (`fold` None), in the unit of the cell's measure.

    A figure that is not known is None.
    """

    row: str
    column: str
    fold: int | None
    ours: float | None = None
    low: float | None = None
    high: float | None = None
    published: float | None = None
    # difference to the reference row, with its paired interval: (difference, low, high)
    versus_reference: tuple[float, float, float] | None = None
    fewer_folds: bool = False  # `ours` is the mean of fewer folds than the published figure

    @property
    def difference(self) -> float | None:
        """Our figure minus the published one; None if one is missing or they are of different folds."""
        if self.ours is None or self.published is None or self.fewer_folds:
            return None
        return self.ours - self.published

    @property
    def published_outside(self) -> bool:
        """Whether the published figure is outside our interval; False if one of them is missing."""
        if self.low is None or self.high is None or self.published is None or self.fewer_folds:
            return False
        return not self.low <= self.published <= self.high

    def as_json(self) -> dict[str, Any]:
        """The figures for the JSON document."""
        known = {"ours": self.ours, "interval": None if self.low is None else [self.low, self.high],
                 "published": self.published, "difference": self.difference,
                 "published_outside": self.published_outside, "fewer_folds": self.fewer_folds}
        versus = {"versus_reference": list(self.versus_reference)} if self.versus_reference else {}
        return {"row": self.row, "column": self.column, "fold": "mean" if self.fold is None else self.fold,
                **known, **versus}


@dataclass(frozen=True, kw_only=True)
class TableOutcome:
    """A table with its figures. `remarks`: row -> what a reader needs to know about our runs of it."""

    name: str
    table: PublishedTable
    figures: list[TableFigure]
    remarks: dict[str, list[str]] = field(default_factory=dict)
    changes: Sequence[str] = ()  # settings that the command changed, so that the runs leave the published protocol

    @property
    def finished(self) -> int:
        """Number of cells that have a figure of ours."""
        return sum(f.fold is None and f.ours is not None for f in self.figures)

    def find_figure(self, row: str, column: str, fold: int | None = None) -> TableFigure | None:
        """The figure of a fold or of the mean; None if the row has no cell in that column."""
        return next((f for f in self.figures if (f.row, f.column, f.fold) == (row, column, fold)), None)


def collect_outcome(name: str, table: PublishedTable, cells: Sequence[TableCell],
                    changes: Sequence[str] = ()) -> TableOutcome:
    """Collect the figures of a table from the records of its cells. Nothing is run."""
    known = {(c.row.name, c.key): (c, r) for c in cells if (r := c.read_record())}
    figures: list[TableFigure] = []
    for row in table.rows:
        for key in table.columns_of(row):
            found = known.get((row.name, key))
            figures += _cell(table, row.name, key, found, known.get((table.reference, key)))
    for rival in table.rivals:
        for key, column in table.columns.items():
            figures += [TableFigure(row=rival.name, column=key, fold=f, published=table.figure(rival, key, f))
                        for f in folds_of(column)]
    remarks: dict[str, list[str]] = {}
    for (row_name, _), (_, record) in known.items():
        for remark in _remarks(record):
            if remark not in remarks.setdefault(row_name, []):
                remarks[row_name].append(remark)
    return TableOutcome(name=name, table=table, figures=figures, remarks={k: v for k, v in remarks.items() if v},
                        changes=list(changes))


def folds_of(column: TableColumn) -> list[int | None]:
    """The folds that a column shows, then None, which stands for their mean."""
    return [*range(column.folds), None]


FinishedCell = tuple[TableCell, CellRecord]


def _cell(table: PublishedTable, name: str, key: str, known: FinishedCell | None,
          reference: FinishedCell | None) -> list[TableFigure]:
    row = next(r for r in table.rows if r.name == name)
    found = []
    for fold in folds_of(table.columns[key]):
        published = table.figure(row, key, fold)
        made = _ours(table, known, fold) if known else {}
        if known and reference and fold is None and name != table.reference:
            made["versus_reference"] = _versus(table, known, reference)
        found.append(TableFigure(row=name, column=key, fold=fold, published=published, **made))
    return found


def _ours(table: PublishedTable, known: FinishedCell, fold: int | None) -> dict[str, Any]:
    """The fields `ours`, `low`, `high` and `fewer_folds` of a fold or of the mean; empty if that fold was not run."""
    cell, record = known
    runs = [r for r in record.results if fold is None or r.spec.fold == fold]
    if not runs:
        return {}
    fewer = {"fewer_folds": fold is None and len({r.spec.fold for r in runs}) < cell.folds}
    measure = cell.column.measure
    if measure == "trained_m":
        return {"ours": max(r.trainable_params for r in runs) / 1e6}
    if measure == "fps":
        seconds = float(record.latency.get("seconds", 0.0))
        return {"ours": 1 / seconds} if seconds else {}
    if measure in ("mask_precision", "mask_recall"):
        values = [getattr(record.masks[r.run][cell.row.mask], measure.removeprefix("mask_")) for r in runs]
        return {"ours": 100 * float(np.mean(values)), **fewer}
    sample, metric = _sample(cell, runs), _metric(measure)
    scores = resampled_scores(sample, resamples=table.resamples, seed=0, metric=metric)
    low, high = interval(scores, table.confidence)
    return {"ours": 100 * _mean(cell, runs, metric), "low": 100 * low, "high": 100 * high, **fewer}


def _metric(measure: str) -> Metric:
    return "fb_iou" if measure == "fb_iou" else "miou"


def _mean(cell: TableCell, runs: Sequence[RunResult], metric: Metric) -> float:
    """The score as a fraction: the mean over folds of the mean over seeds."""
    from fss_models.metrics import score

    by_fold: dict[int | None, list[float]] = {}
    for run in runs:
        found = score(cell.read_counts(run), [int(c) for c in run.classes])
        by_fold.setdefault(run.spec.fold, []).append(float(getattr(found, metric)))
    return float(np.mean([np.mean(v) for v in by_fold.values()]))


def _sample(cell: TableCell, runs: Sequence[RunResult]) -> MethodCounts:
    by_fold: dict[int, list[RunResult]] = {}
    for run in runs:
        by_fold.setdefault(-1 if run.spec.fold is None else run.spec.fold, []).append(run)
    return MethodCounts.of([(f, [cell.read_counts(r) for r in rs]) for f, rs in sorted(by_fold.items())])


def _versus(table: PublishedTable, known: FinishedCell, reference: FinishedCell) -> tuple[float, float, float] | None:
    """Difference to the reference row in points, with its paired interval; None if episodes or folds differ."""
    (cell, record), (other, base) = known, reference
    measure = cell.column.measure
    if measure not in ("miou", "fb_iou", "mask_miou") or _lists(record) != _lists(base):
        return None
    metric = _metric(measure)
    low, high = paired_difference(_sample(cell, record.results), _sample(other, base.results), seed=0,
                                  resamples=table.resamples, metric=metric, confidence=table.confidence)
    gain = _mean(cell, record.results, metric) - _mean(other, base.results, metric)
    return 100 * gain, 100 * low, 100 * high


def _lists(record: CellRecord) -> dict[Any, str]:
    return {r.spec.fold: r.list_hash for r in record.results}


def _remarks(record: CellRecord) -> list[str]:
    remarks = []
    if any(r.untrained for r in record.results):
        remarks.append("parts of the model that need training have random values: this is no verdict on the method")
    seeds = len({r.spec.seed for r in record.results})
    if seeds > 1:
        remarks.append(f"mean of {seeds} seeds")
    return remarks


def document(found: TableOutcome, cells: Sequence[TableCell]) -> dict[str, Any]:
    """The table as JSON: its figures, and the runs of each finished cell with their hashes."""
    table = found.table
    runs = {f"{c.row.name} | {c.key}": [{"run": r.run, "bundle_id": r.bundle_id, "list_hash": r.list_hash,
                                         "data_hash": r.spec.data_hash, "steps": r.steps, "code": r.code}
                                        for r in record.results] for c in cells if (record := c.read_record())}
    return {"table": found.name, "title": table.title, "paper": table.paper, "source": table.source,
            "measures": {k: MEASURES[c.measure] for k, c in table.columns.items()}, "changes": list(found.changes),
            "rivals": {r.name: r.source for r in table.rivals}, "confidence": table.confidence,
            "figures": [f.as_json() for f in found.figures], "remarks": found.remarks, "notes": table.notes,
            "runs": runs}
