"""The cells of a table: each a recipe of one method, and what is kept of it once its runs are finished.

Below the workspace: `tables/cells/<key>/record.json`, written last, and the episode counts beside it. They stay when a
run is scored in another way for another cell (1-shot and 5-shot of one training), so nothing is done twice.
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


class PseudoMaskQuality(Section):
    """A run's pseudo masks of one kind: precision and recall, fractions; the counts are beside the record."""

    precision: float
    recall: float


class CellRecord(Section):
    """What a finished cell leaves: its runs (fold x seed), the latency measured, FCP's pseudo masks by run and kind."""

    results: list[RunResult]
    latency: dict[str, Any] = Field(default_factory=dict)
    masks: dict[str, dict[str, PseudoMaskQuality]] = Field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TableCell:
    """A row in a column. `folds` is how many the published figure is the mean of."""

    row: TableRow
    key: str
    column: TableColumn
    recipe: Recipe
    folds: int

    @property
    def method(self) -> MethodConfig:
        """The only one of its recipe."""
        return self.recipe.methods[0]

    @cached_property
    def digest(self) -> str:
        """12 hex digits over what decides its figures."""
        content: dict[str, Any] = {k: self.recipe.model_dump(mode="json")[k] for k in DECIDES}
        content |= {"folds": self.recipe.sweep.folds, "seeds": self.recipe.sweep.seeds, "masks": bool(self.row.mask)}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def store(self) -> Store:
        """Where its record is."""
        return Store(join(self.recipe.out, "tables", "cells", self.digest))

    @property
    def group(self) -> str:
        """Equal for cells that can be runs of one sweep: all but the method is the same."""
        return self.recipe.model_dump_json(exclude={"methods", "name"})

    def record(self) -> CellRecord | None:
        """What is known, None where it is not finished or is of other data than the shards that are there now."""
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

    def counts(self, result: RunResult) -> Counts:
        """The episode counts of one of its runs: of the segmentation, or of the row's pseudo mask."""
        name = f"{result.run}-{self.row.mask}" if self.row.mask else result.run
        return table_counts(self.store.read_table(f"{name}.parquet"), [int(c) for c in result.classes])


def group_cells(cells: Sequence[TableCell]) -> list[list[TableCell]]:
    """Cells that one sweep can run, in the order in which they come first."""
    groups: dict[str, list[TableCell]] = {}
    for cell in cells:
        groups.setdefault(cell.group, []).append(cell)
    return list(groups.values())
