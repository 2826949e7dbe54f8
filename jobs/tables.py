"""Reading table files and turning their cells into recipes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from fss_models import registry
from fss_models.errors import FssError
from fss_models.settings import weight_fields
from jobs.recipes import list_recipes, load_recipe
from pipelines.config.data import BENCHMARKS, DataConfig
from pipelines.config.method import MethodConfig
from pipelines.config.recipe import Recipe
from pipelines.papers.tables.cells import TableCell
from pipelines.papers.tables.config import PublishedTable, TableColumn, TableRow
from pipelines.papers.tables.missing import file_name

FOLDER = "tables"
Places = dict[str, str]


def list_tables() -> list[str]:
    """Names of the tables that ship with the package."""
    return list_recipes(FOLDER)


def load_table(name: str) -> tuple[str, PublishedTable]:
    """(its name, the table): one that ships, or a YAML file. Raises `FssError` for a missing or wrong file."""
    path = Path(name)
    if not path.suffix:
        if name not in list_tables():
            raise FssError(f"no table {name!r}", mend=f"known: {', '.join(list_tables())}; or give a .yaml file")
        text = files("jobs").joinpath("recipes", FOLDER, f"{name}.yaml").read_text()
    elif not path.is_file():
        raise FssError("no such table file", where=name, mend=f"shipped tables: {', '.join(list_tables())}")
    else:
        text = path.read_text()
    try:
        return path.stem, PublishedTable.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise FssError(f"is not valid YAML: {error}", where=name) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(p) for p in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise FssError(f"{place}: {message}" if place else message, where=name) from error


def cells_of(table: PublishedTable, *, rows: Sequence[str] = (), columns: Sequence[str] = (),
             roots: Places | None = None, weights: Places | None = None, sets: Sequence[str] = (),
             out: str = "out/reproduce") -> list[TableCell]:
    """The table's cells, or those of some rows and columns; `roots` and `weights` are other places by name.

    Raises `FssError` for a row, a column, a dataset or a weight file that the table has not, and for a wrong recipe.
    """
    _known("row", rows, [r.name for r in table.rows])
    _known("column", columns, list(table.columns))
    made = [_cell(row, key, table.columns[key], sets, out) for row in table.rows if not rows or row.name in rows
            for key in table.columns_of(row) if not columns or key in columns]
    parts = [part for c in made for part in (c.recipe.data, *(m.data for m in c.recipe.mixture))]
    _known("dataset", roots or {}, [p.name for p in parts])
    _known("weight file", weights or {}, [file_name(p) for c in made for p in _places(c.method)])
    return [TableCell(row=c.row, key=c.key, column=c.column, folds=c.folds,
                      recipe=_placed(c.recipe, roots or {}, weights or {})) for c in made]


def _cell(row: TableRow, key: str, column: TableColumn, sets: Sequence[str], out: str) -> TableCell:
    name = column.recipe.replace("{method}", row.method)
    own = [f"{k}={json.dumps(v)}" for k, v in (column.set | row.set).items()]
    plain = load_recipe(name, own, out=out)
    if len(plain.methods) != 1:
        raise FssError(f"recipe {name!r} has {len(plain.methods)} methods, a cell has one", where=f"row {row.name!r}",
                       mend="set methods: [...] in the row")
    folds = len(plain.sweep.folds) or _folds(plain.data)
    return TableCell(row=row, key=key, column=column, recipe=load_recipe(name, [*own, *sets], out=out), folds=folds)


def _folds(data: DataConfig) -> int:
    return int(BENCHMARKS.get(data.source.format, {}).get("folds", data.folds))


def _known(what: str, given: Sequence[str] | Places, known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise FssError(f"the table has no {what} {name!r}", mend=f"known: {', '.join(dict.fromkeys(known))}")


def _places(method: MethodConfig) -> list[str]:
    fields = weight_fields(registry.method_config(method.name))
    return [p for p in (method.weights, *(str(method.config.get(f, "")) for f in fields)) if p]


def _placed(recipe: Recipe, roots: Places, weights: Places) -> Recipe:
    """The same with datasets and weight files at other places."""
    method = recipe.methods[0]
    fields = weight_fields(registry.method_config(method.name))
    config = {k: weights.get(file_name(str(v)), v) if k in fields else v for k, v in method.config.items()}
    at = weights.get(file_name(method.weights), method.weights)
    mixture = [m.model_copy(update={"data": _rooted(m.data, roots)}) for m in recipe.mixture]
    return recipe.model_copy(update={
        "data": _rooted(recipe.data, roots), "mixture": mixture,
        "methods": [method.model_copy(update={"weights": at, "config": config})]})


def _rooted(data: DataConfig, roots: Places) -> DataConfig:
    root = roots.get(data.name, data.source.root)
    return data.model_copy(update={"source": data.source.model_copy(update={"root": root})})


def place_cells(given: Sequence[str] | None, option: str) -> Places:
    """`NAME=PLACE` options as a dictionary. Raises `FssError` for one without a name or a place."""
    found: dict[str, Any] = {}
    for item in given or []:
        name, eq, place = item.partition("=")
        if not (name and eq and place):
            raise FssError(f"{option} {item!r} is no NAME=PLACE", mend=f"write {option} NAME=PLACE")
        found[name] = place
    return found
