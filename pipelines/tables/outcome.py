"""A table with what is known so far: ours, its interval, the published figure and the difference, cell by cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fss_models.metrics import MethodCounts, Metric, interval, paired_difference, resampled_scores
from pipelines.tables.cells import Cell, Record
from pipelines.tables.config import MEASURES, Column, Table
from pipelines.training.results import RunResult


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One cell, or one fold of it (None: the mean), in the unit of its measure. None: not known."""

    row: str
    column: str
    fold: int | None
    ours: float | None = None
    low: float | None = None
    high: float | None = None
    published: float | None = None
    versus: tuple[float, float, float] | None = None  # against the reference row: difference and its paired interval
    short: bool = False  # the mean of fewer folds than the published one

    @property
    def difference(self) -> float | None:
        """Ours less the published, where both are of the same folds."""
        return None if self.ours is None or self.published is None or self.short else self.ours - self.published

    @property
    def outside(self) -> bool:
        """Whether the published figure is outside our interval."""
        if self.low is None or self.high is None or self.published is None or self.short:
            return False
        return not self.low <= self.published <= self.high

    def as_json(self) -> dict[str, Any]:
        """For the document."""
        known = {"ours": self.ours, "interval": None if self.low is None else [self.low, self.high],
                 "published": self.published, "difference": self.difference, "published_outside": self.outside,
                 "fewer_folds": self.short}
        versus = {"versus_reference": list(self.versus)} if self.versus else {}
        return {"row": self.row, "column": self.column, "fold": "mean" if self.fold is None else self.fold,
                **known, **versus}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A table and its figures; `remarks`: row -> what a reader must know of our runs."""

    name: str
    table: Table
    figures: list[Figure]
    remarks: dict[str, list[str]] = field(default_factory=dict)
    changes: Sequence[str] = ()  # what the command changed: the runs are not the published protocol then

    @property
    def finished(self) -> int:
        """How many cells have a figure of ours."""
        return sum(f.fold is None and f.ours is not None for f in self.figures)

    def of(self, row: str, column: str, fold: int | None = None) -> Figure | None:
        """One figure, None where the row has no such cell."""
        return next((f for f in self.figures if (f.row, f.column, f.fold) == (row, column, fold)), None)


def outcome(name: str, table: Table, cells: Sequence[Cell], changes: Sequence[str] = ()) -> Outcome:
    """Everything that is known of a table's cells. Nothing is run."""
    known = {(c.row.name, c.key): (c, r) for c in cells if (r := c.record())}
    figures: list[Figure] = []
    for row in table.rows:
        for key in table.columns_of(row):
            found = known.get((row.name, key))
            figures += _cell(table, row.name, key, found, known.get((table.reference, key)))
    for rival in table.rivals:
        for key, column in table.columns.items():
            figures += [Figure(row=rival.name, column=key, fold=f, published=table.figure(rival, key, f))
                        for f in folds_of(column)]
    remarks: dict[str, list[str]] = {}
    for (row_name, _), (_, record) in known.items():
        for said in _remarks(record):
            if said not in remarks.setdefault(row_name, []):
                remarks[row_name].append(said)
    return Outcome(name=name, table=table, figures=figures, remarks={k: v for k, v in remarks.items() if v},
                   changes=list(changes))


def folds_of(column: Column) -> list[int | None]:
    """The folds that a column shows, then None, their mean."""
    return [*range(column.folds), None]


Known = tuple[Cell, Record]


def _cell(table: Table, name: str, key: str, known: Known | None, reference: Known | None) -> list[Figure]:
    row = next(r for r in table.rows if r.name == name)
    found = []
    for fold in folds_of(table.columns[key]):
        published = table.figure(row, key, fold)
        made = _ours(table, known, fold) if known else {}
        if known and reference and fold is None and name != table.reference:
            made["versus"] = _versus(table, known, reference)
        found.append(Figure(row=name, column=key, fold=fold, published=published, **made))
    return found


def _ours(table: Table, known: Known, fold: int | None) -> dict[str, Any]:
    """ours, low, high, short of a fold or the mean; {} where that fold was not run."""
    cell, record = known
    runs = [r for r in record.results if fold is None or r.spec.fold == fold]
    if not runs:
        return {}
    short = {"short": fold is None and len({r.spec.fold for r in runs}) < cell.folds}
    measure = cell.column.measure
    if measure == "trained_m":
        return {"ours": max(r.trainable_params for r in runs) / 1e6}
    if measure == "fps":
        seconds = float(record.latency.get("seconds", 0.0))
        return {"ours": 1 / seconds} if seconds else {}
    if measure in ("mask_precision", "mask_recall"):
        values = [getattr(record.masks[r.run][cell.row.mask], measure.removeprefix("mask_")) for r in runs]
        return {"ours": 100 * float(np.mean(values)), **short}
    sample, metric = _sample(cell, runs), _metric(measure)
    scores = resampled_scores(sample, resamples=table.resamples, seed=0, metric=metric)
    low, high = interval(scores, table.confidence)
    return {"ours": 100 * _mean(cell, runs, metric), "low": 100 * low, "high": 100 * high, **short}


def _metric(measure: str) -> Metric:
    return "fb_iou" if measure == "fb_iou" else "miou"


def _mean(cell: Cell, runs: Sequence[RunResult], metric: Metric) -> float:
    """The mean over folds of the mean over seeds, a fraction."""
    from fss_models.metrics import score

    by_fold: dict[int | None, list[float]] = {}
    for run in runs:
        found = score(cell.counts(run), [int(c) for c in run.classes])
        by_fold.setdefault(run.spec.fold, []).append(float(getattr(found, metric)))
    return float(np.mean([np.mean(v) for v in by_fold.values()]))


def _sample(cell: Cell, runs: Sequence[RunResult]) -> MethodCounts:
    by_fold: dict[int, list[RunResult]] = {}
    for run in runs:
        by_fold.setdefault(-1 if run.spec.fold is None else run.spec.fold, []).append(run)
    return MethodCounts.of([(f, [cell.counts(r) for r in rs]) for f, rs in sorted(by_fold.items())])


def _versus(table: Table, known: Known, reference: Known) -> tuple[float, float, float] | None:
    """Points above the reference row and their paired interval; None where episodes or folds differ."""
    (cell, record), (other, base) = known, reference
    measure = cell.column.measure
    if measure not in ("miou", "fb_iou", "mask_miou") or _lists(record) != _lists(base):
        return None
    metric = _metric(measure)
    low, high = paired_difference(_sample(cell, record.results), _sample(other, base.results), seed=0,
                                  resamples=table.resamples, metric=metric, confidence=table.confidence)
    gain = _mean(cell, record.results, metric) - _mean(other, base.results, metric)
    return 100 * gain, 100 * low, 100 * high


def _lists(record: Record) -> dict[Any, str]:
    return {r.spec.fold: r.list_hash for r in record.results}


def _remarks(record: Record) -> list[str]:
    said = []
    if any(r.untrained for r in record.results):
        said.append("holds random values where training is needed: no verdict on the method")
    seeds = len({r.spec.seed for r in record.results})
    if seeds > 1:
        said.append(f"mean of {seeds} seeds")
    return said


def document(found: Outcome, cells: Sequence[Cell]) -> dict[str, Any]:
    """Everything as JSON: figures, and of each finished cell its runs with hashes."""
    table = found.table
    runs = {f"{c.row.name} | {c.key}": [{"run": r.run, "bundle_id": r.bundle_id, "list_hash": r.list_hash,
                                         "data_hash": r.spec.data_hash, "steps": r.steps, "code": r.code}
                                        for r in record.results] for c in cells if (record := c.record())}
    return {"table": found.name, "title": table.title, "paper": table.paper, "source": table.source,
            "measures": {k: MEASURES[c.measure] for k, c in table.columns.items()}, "changes": list(found.changes),
            "rivals": {r.name: r.source for r in table.rivals}, "confidence": table.confidence,
            "figures": [f.as_json() for f in found.figures], "remarks": found.remarks, "notes": table.notes,
            "runs": runs}
