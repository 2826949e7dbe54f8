"""The cells of a table: each is a recipe of one method, and leaves a record when its runs are finished.

A cell's files are below the workspace: `tables/cells/<digest>/record.json`, written last, with the episode counts
beside it. They remain when another cell scores the same run in another way (1-shot and 5-shot of one training), so
nothing is done twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import Field, ValidationError

from fss_models.metrics import Counts
from pipelines.base.storage import Store, join
from pipelines.base.workspace import Workspace
from pipelines.config.method import MethodConfig
from pipelines.config.recipe import Recipe
from pipelines.config.section import Section
from pipelines.data.shardset import Shards
from pipelines.evaluation.results import RunResult, table_counts
from pipelines.papers.tables.config import TableColumn, TableRow

DECIDES = ("data", "mixture", "methods", "train", "eval")


class CellQuality(Section):
    """Precision and recall, as fractions, of one kind of pseudo mask of a run; the counts are beside the record."""

    precision: float
    recall: float


class CellRecord(Section):
    """A finished cell: its runs (fold x seed), its latency, and the quality of its pseudo masks by run and kind."""

    results: list[RunResult]
    latency: dict[str, Any] = Field(default_factory=dict)
    masks: dict[str, dict[str, CellQuality]] = Field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TableCell:
    """One row of the table in one column. The published figure is the mean of `folds` folds."""

    row: TableRow
    key: str
    column: TableColumn
    recipe: Recipe
    folds: int

    @property
    def method(self) -> MethodConfig:
        """The only method of the cell's recipe."""
        return self.recipe.methods[0]

    @cached_property
    def digest(self) -> str:
        """12 hex digits of a hash over every setting that influences the cell's figures."""
        content: dict[str, Any] = {k: self.recipe.model_dump(mode="json")[k] for k in DECIDES}
        content |= {"folds": self.recipe.sweep.folds, "seeds": self.recipe.sweep.seeds, "masks": bool(self.row.mask)}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def store(self) -> Store:
        """The folder of the cell's record and counts."""
        return Store(join(self.recipe.out, "tables", "cells", self.digest))

    @property
    def group(self) -> str:
        """The recipe without its method and name, as JSON: equal for cells that one sweep can run."""
        return self.recipe.model_dump_json(exclude={"methods", "name"})

    def read_record(self) -> CellRecord | None:
        """The cell's record, or None if the cell is not finished or its record is of other shards than today's."""
        if not self.store.exists("record.json"):
            return None
        try:
            found = CellRecord.model_validate(self.store.read_json("record.json"))
        except ValidationError:
            return None
        shards = Workspace(self.recipe.out).shards(self.recipe.data.name)
        if not Store(shards).exists("manifest.json"):
            return found
        current = Shards(shards).manifest.content_hash
        return found if all(r.spec.data_hash == current for r in found.results) else None

    def read_counts(self, result: RunResult) -> Counts:
        """The episode counts of one of the cell's runs: of its segmentation, or of the row's kind of pseudo mask."""
        name = f"{result.run}-{self.row.mask}" if self.row.mask else result.run
        return table_counts(self.store.read_table(f"{name}.parquet"), [int(c) for c in result.classes])


def group_cells(cells: Sequence[TableCell]) -> list[list[TableCell]]:
    """Group the cells that one sweep can run; groups come in the order of their first cells."""
    groups: dict[str, list[TableCell]] = {}
    for cell in cells:
        groups.setdefault(cell.group, []).append(cell)
    return list(groups.values())
