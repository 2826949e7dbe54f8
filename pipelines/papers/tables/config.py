"""What a table file may say: columns (what is measured), rows (what we run), rivals (published figures alone).

A cell is a recipe: the column's, changed by the column's `set`, then by the row's. Published figures are percent, or
what the column's measure says; one that is not at hand is left out or null.
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
    """What is measured on what."""

    title: str
    recipe: str  # a shipped recipe's name or a file; {method} in it is the row's `method`
    set: dict[str, Any] = Field(default_factory=dict)  # changes to the recipe: {eval.shots: 5}
    measure: Measure = "miou"
    folds: int = Field(0, ge=0)  # so many folds are shown before their mean; 0: the mean alone


class TableRow(Section):
    """A configuration that we run."""

    name: str
    method: str = ""  # for {method} in the columns' recipes
    set: dict[str, Any] = Field(default_factory=dict)
    mask: Literal["", "conventional", "attention"] = ""  # which of FCP's pseudo masks, for the columns about them
    columns: list[str] = Field(default_factory=list)  # the columns that it is run for; empty: all
    # column -> figure; of a column with folds: each fold's, then the mean
    published: dict[str, Figures] = Field(default_factory=dict)


class RivalRow(Section):
    """A method that is not run here."""

    name: str
    source: str = Field(min_length=1)  # where the figures stand
    published: dict[str, Figures]


class PublishedTable(Section):
    """A published table."""

    title: str
    paper: str
    source: str  # where the published figures of `rows` stand
    columns: dict[str, TableColumn]
    rows: list[TableRow] = Field(min_length=1)
    rivals: list[RivalRow] = Field(default_factory=list)
    reference: str = ""  # a row that the others are compared with on the same episodes
    confidence: float = Field(0.95, gt=0.5, lt=1)
    resamples: Positive = 1000
    notes: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _names_are_known(self) -> PublishedTable:
        names = [r.name for r in self.all_rows]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"two rows are named {twice[0]!r}")
        if self.reference and self.reference not in [r.name for r in self.rows]:
            raise ValueError(f"reference {self.reference!r} is no row")
        for row in self.rows:
            if unknown := sorted(set(row.columns) - self.columns.keys()):
                raise ValueError(f"row {row.name!r}: there is no column {unknown[0]!r}")
            self._check_row(row)
        return self

    def _check_row(self, row: TableRow) -> None:
        for key in self.columns_of(row):
            column = self.columns[key]
            if "{method}" in column.recipe and not row.method:
                raise ValueError(f"row {row.name!r} names no method for {column.recipe!r}")
            if column.measure.startswith("mask_") != bool(row.mask):
                raise ValueError(f"row {row.name!r}, column {key!r}: `mask` goes with the measures of pseudo masks")

    @model_validator(mode="after")
    def _figures_fit(self) -> PublishedTable:
        for row in self.all_rows:
            for key, given in row.published.items():
                if key not in self.columns:
                    raise ValueError(f"{row.name!r}: there is no column {key!r}")
                folds = self.columns[key].folds
                if isinstance(given, list) != bool(folds) or (isinstance(given, list) and len(given) != folds + 1):
                    wanted = f"{folds} folds and their mean" if folds else "one figure"
                    raise ValueError(f"{row.name!r}, column {key!r}: {wanted} expected, not {given}")
        return self

    @property
    def all_rows(self) -> list[TableRow | RivalRow]:
        """Rows, then rivals."""
        return [*self.rows, *self.rivals]

    def columns_of(self, row: TableRow) -> list[str]:
        """The columns a row is run for, in the table's order."""
        return [k for k in self.columns if not row.columns or k in row.columns]

    def figure(self, row: TableRow | RivalRow, column: str, fold: int | None = None) -> float | None:
        """A published figure: of a fold, or the mean. None where it is not at hand."""
        given = row.published.get(column)
        if isinstance(given, list):
            return given[-1 if fold is None else fold]
        return given if fold is None else None
