"""Reads table files and turns their cells into recipes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from fss_models import registry
from fss_models.errors import FssError
from fss_models.settings import weight_fields
from jobs.recipes import list_recipes, load_recipe, read_yaml
from pipelines.config.data import BENCHMARKS, DataConfig
from pipelines.config.method import MethodConfig
from pipelines.config.recipe import Recipe
from pipelines.papers.tables.cells import TableCell
from pipelines.papers.tables.config import PublishedTable, TableColumn, TableRow
from pipelines.papers.tables.missing import file_name

FOLDER = "tables"
Places = dict[str, str]


def list_tables() -> list[str]:
    """Names of the published tables that ship with the package."""
    return list_recipes(FOLDER)


def load_table(name: str) -> tuple[str, PublishedTable]:
    """(name, table) of a table that ships or of a YAML file. Raises `FssError` for a missing or invalid file."""
    raw, _ = read_yaml(name, FOLDER, "table")
    try:
        return Path(name).stem, PublishedTable.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(p) for p in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise FssError(f"{place}: {message}" if place else message, where=name) from error


def make_cells(table: PublishedTable, *, rows: Sequence[str] = (), columns: Sequence[str] = (),
               roots: Places | None = None, weights: Places | None = None, sets: Sequence[str] = (),
               out: str = "out/reproduce") -> list[TableCell]:
    """The table's cells with their recipes: all cells, or those of `rows` and `columns`.

    `roots`: dataset name -> its folder; `weights`: weight file name -> its path; both replace those of the recipes.
    Raises `FssError` for a row, column, dataset or weight file that the table does not have, and for a wrong recipe.
    """
    check_names("row", rows, [r.name for r in table.rows])
    check_names("column", columns, list(table.columns))
    cells = [_cell(row, key, table.columns[key], sets,
                   out) for row in table.rows if not rows or row.name in rows for key in table.columns_of(row)
             if not columns or key in columns]
    parts = [part for c in cells for part in (c.recipe.data, *(m.data for m in c.recipe.mixture))]
    check_names("dataset", roots or {}, [p.name for p in parts])
    check_names("weight file", weights or {}, [file_name(p) for c in cells for p in _weight_paths(c.method)])
    return [TableCell(row=c.row, key=c.key, column=c.column, folds=c.folds,
                      recipe=_with_places(c.recipe, roots or {}, weights or {})) for c in cells]


def _cell(row: TableRow, key: str, column: TableColumn, sets: Sequence[str], out: str) -> TableCell:
    name = column.recipe.replace("{method}", row.method)
    own = [f"{k}={json.dumps(v)}" for k, v in (column.set | row.set | row.set_in.get(key, {})).items()]
    plain = load_recipe(name, own, out=out)
    if len(plain.methods) != 1:
        raise FssError(f"recipe {name!r} has {len(plain.methods)} methods; a cell needs exactly one",
                       where=f"row {row.name!r}", hint="set methods: [...] in the row")
    folds = len(plain.sweep.folds) or _count_folds(plain.data)
    return TableCell(row=row, key=key, column=column, recipe=load_recipe(name, [*own, *sets], out=out), folds=folds)


def _count_folds(data: DataConfig) -> int:
    return int(BENCHMARKS.get(data.source.format, {}).get("folds", data.folds))


def check_names(what: str, names: Sequence[str] | Places, known: Sequence[str]) -> None:
    """Raise `FssError` for a name that is not among the known ones; `what` says what it names."""
    for name in names:
        if name not in known:
            raise FssError(f"the table has no {what} {name!r}", hint=f"known: {', '.join(dict.fromkeys(known))}")


def _weight_paths(method: MethodConfig) -> list[str]:
    fields = weight_fields(registry.method_config(method.name))
    return [p for p in (method.weights, *(str(method.config.get(f, "")) for f in fields)) if p]


def _with_places(recipe: Recipe, roots: Places, weights: Places) -> Recipe:
    """The recipe with other folders of datasets and other paths of weight files."""
    method = recipe.methods[0]
    fields = weight_fields(registry.method_config(method.name))
    config = {k: weights.get(file_name(str(v)), v) if k in fields else v for k, v in method.config.items()}
    at = weights.get(file_name(method.weights), method.weights)
    mixture = [m.model_copy(update={"data": _with_root(m.data, roots)}) for m in recipe.mixture]
    return recipe.model_copy(update={
        "data": _with_root(recipe.data, roots), "mixture": mixture,
        "methods": [method.model_copy(update={"weights": at, "config": config})]})


def _with_root(data: DataConfig, roots: Places) -> DataConfig:
    root = roots.get(data.name, data.source.root)
    return data.model_copy(update={"source": data.source.model_copy(update={"root": root})})


def parse_places(values: Sequence[str] | None, option: str) -> Places:
    """Values of an option, each `NAME=PLACE`, as name -> place. Raises `FssError` if a name or place is missing."""
    places: Places = {}
    for item in values or []:
        name, eq, place = item.partition("=")
        if not (name and eq and place):
            raise FssError(f"{option} {item!r} is not of the form NAME=PLACE", hint=f"write {option} NAME=PLACE")
        places[name] = place
    return places
