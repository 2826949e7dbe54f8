"""The content of a table file: columns (what is measured), rows (what we run), rivals (only published figures).

A cell is run from the column's recipe, changed by the column's `set`, then by the row's `set` and its `set_in`.
Published figures are in the unit of the column's measure, usually percent. A figure that is not known is left out or
null.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from pipelines.config.section import Positive, Section

Measure = Literal["miou", "fb_iou", "trained_m", "fps", "mask_miou", "mask_precision", "mask_recall"]
MEASURES: dict[str, str] = {
    "miou": "mIoU, %", "fb_iou": "FB-IoU, %", "trained_m": "trained parameters, M", "fps": "queries/s",
    "mask_miou": "pseudo mask mIoU, %", "mask_precision": "pseudo mask precision, %",
    "mask_recall": "pseudo mask recall, %",
}
Figures = float | list[float | None] | None


class TableColumn(Section):
    """A column of the table: a recipe and the measure that is shown."""

    title: str
    recipe: str  # a shipped recipe's name or a recipe file; {method} stands for the row's `method`
    set: dict[str, Any] = Field(default_factory=dict)  # changes to the recipe, such as {eval.shots: 5}
    measure: Measure = "miou"
    folds: int = Field(0, ge=0)  # number of folds shown before their mean; 0 shows the mean alone


class TableRow(Section):
    """A row of the table: a configuration that we run."""

    name: str
    method: str = ""  # replaces {method} in the columns' recipes
    set: dict[str, Any] = Field(default_factory=dict)  # changes to the columns' recipes
    set_in: dict[str, dict[str, Any]] = Field(default_factory=dict)  # column -> further changes to its recipe
    mask: Literal["", "conventional", "attention"] = ""  # FCP's pseudo mask that mask_* columns measure
    columns: list[str] = Field(default_factory=list)  # keys of the columns that the row is run for; empty: all
    # column -> figure; for a column with folds: a list of each fold's figure, then the mean
    published: dict[str, Figures] = Field(default_factory=dict)


class RivalRow(Section):
    """A method that is not run here: only its published figures are shown."""

    name: str
    source: str = Field(min_length=1)  # the publication that the figures are from
    published: dict[str, Figures]


class PublishedTable(Section):
    """A published table."""

    title: str
    paper: str
    source: str  # the publication that the figures of `rows` are from
    columns: dict[str, TableColumn]
    rows: list[TableRow] = Field(min_length=1)
    rivals: list[RivalRow] = Field(default_factory=list)
    reference: str = ""  # name of the row that the others are compared with on the same episodes
    confidence: float = Field(0.95, gt=0.5, lt=1)  # level of the bootstrap intervals
    resamples: Positive = 1000  # bootstrap samples of an interval
    notes: list[str] = Field(default_factory=list)  # sentences printed below the table

    @model_validator(mode="after")
    def _names_are_known(self) -> PublishedTable:
        names = [r.name for r in self.all_rows]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"two rows are named {twice[0]!r}")
        if self.reference and self.reference not in [r.name for r in self.rows]:
            raise ValueError(f"reference {self.reference!r} is not the name of a row")
        for row in self.rows:
            if unknown := sorted({*row.columns, *row.set_in} - self.columns.keys()):
                raise ValueError(f"row {row.name!r}: there is no column {unknown[0]!r}")
            self._check_row(row)
        return self

    def _check_row(self, row: TableRow) -> None:
        for key in self.columns_of(row):
            column = self.columns[key]
            if "{method}" in column.recipe and not row.method:
                raise ValueError(f"row {row.name!r} has no `method` to replace in {column.recipe!r}")
            if column.measure.startswith("mask_") != bool(row.mask):
                raise ValueError(f"row {row.name!r}, column {key!r}: `mask` is needed for the measures of pseudo masks "
                                 "(mask_miou, mask_precision, mask_recall), and only for them")

    @model_validator(mode="after")
    def _figures_fit(self) -> PublishedTable:
        for row in self.all_rows:
            for key, figures in row.published.items():
                if key not in self.columns:
                    raise ValueError(f"row {row.name!r}: there is no column {key!r}")
                folds = self.columns[key].folds
                if isinstance(figures, list) != bool(folds) or (isinstance(figures, list)
                                                                and len(figures) != folds + 1):
                    expected = f"a list of {folds} folds and their mean" if folds else "one figure"
                    raise ValueError(f"row {row.name!r}, column {key!r}: expected {expected}, got {figures}")
        return self

    @property
    def all_rows(self) -> list[TableRow | RivalRow]:
        """The rows that are run, then the rivals."""
        return [*self.rows, *self.rivals]

    def columns_of(self, row: TableRow) -> list[str]:
        """The keys of the columns that a row is run for, in the table's order."""
        return [k for k in self.columns if not row.columns or k in row.columns]

    def figure(self, row: TableRow | RivalRow, column: str, fold: int | None = None) -> float | None:
        """The published figure of a fold, or the mean if `fold` is None. Returns None if it is not known."""
        figures = row.published.get(column)
        if isinstance(figures, list):
            return figures[-1 if fold is None else fold]
        return figures if fold is None else None
