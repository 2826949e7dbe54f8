"""`fss reproduce`: the papers' results tables, ours beside the published."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from fss_models.errors import FssError
from jobs.options import JsonOption, OutOption, SetOption
from jobs.tables import cells_of, list_tables, load_table, place_cells

TableArgument = Annotated[str, typer.Argument(help="A shipped table's name or a YAML file.")]
ListOption = Annotated[bool, typer.Option("--list", help="List the shipped tables.")]
ShowOption = Annotated[bool, typer.Option("--show", help="Run nothing: print what is known so far.")]
RowOption = Annotated[list[str] | None, typer.Option("--row", help="Only this row; may be repeated.")]
ColumnOption = Annotated[list[str] | None, typer.Option("--column", help="Only this column, by its key in the file.")]
RootOption = Annotated[list[str] | None, typer.Option("--root", help="DATASET=FOLDER: where a dataset is.")]
WeightOption = Annotated[list[str] | None, typer.Option("--weight", help="NAME=FILE: where a weight file is.")]


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("reproduce")
    def reproduce(
        table: TableArgument = "", list_them: ListOption = False, show: ShowOption = False, row: RowOption = None,
        column: ColumnOption = None, root: RootOption = None, weight: WeightOption = None, sets: SetOption = None,
        out: OutOption = None, as_json: JsonOption = False,
    ) -> None:
        """Run a published table where its data and weights are here; else say what to put where (status 2).

        Started again, it does only what is left; tables of one workspace share what they have in common.
        """
        if list_them or not table:
            _tell_list(as_json)
        else:
            _reproduce(table, show=show, rows=row or [], columns=column or [], roots=place_cells(root, "--root"),
                       weights=place_cells(weight, "--weight"), sets=sets or [], out=out or "out/reproduce",
                       as_json=as_json)


def _tell_list(as_json: bool) -> None:
    found = {name: load_table(name)[1] for name in list_tables()}
    if as_json:
        print(json.dumps({n: {"title": t.title, "paper": t.paper, "rows": [r.name for r in t.rows],
                              "columns": {k: c.title for k, c in t.columns.items()}} for n, t in found.items()},
                         indent=1))
        return
    width = max(map(len, found))
    for name, table in found.items():
        print(f"{name.ljust(width)}  {table.title} ({len(table.rows)} rows to run, {len(table.rivals)} published)")


def _reproduce(name: str, *, show: bool, rows: list[str], columns: list[str], roots: dict[str, str],
               weights: dict[str, str], sets: list[str], out: str, as_json: bool) -> None:
    from pipelines.papers.tables.missing import check_cells, find_missing
    from pipelines.papers.tables.outcome import collect_outcome, document
    from pipelines.papers.tables.run import run_cells
    from pipelines.papers.tables.show import render_text, write_table

    stem, table = load_table(name)
    cells = cells_of(table, rows=rows, columns=columns, roots=roots, weights=weights, sets=sets, out=out)
    check_cells(cells)
    left = [] if show else [c for c in cells if c.read_record() is None]
    if missing := find_missing(left):
        for m in missing:
            print("\n  ".join([f"{m.kind} {m.name}: not at {m.place}", *m.instructions, f"or elsewhere: {m.option}"]),
                  file=sys.stderr)
        raise FssError(f"cannot be run yet: {len(missing)} things are missing, listed above", where=f"table {stem}",
                       mend="put them there and run the same command again; --show prints the published figures")
    failed = {} if show else run_cells(cells)
    found = collect_outcome(stem, table, cells, sets)
    said = render_text(found) if show else f"{render_text(found)}\n\npage: {write_table(found, cells, out)}"
    print(said, file=sys.stderr if as_json else sys.stdout)
    if as_json:
        print(json.dumps(document(found, cells), indent=1))
    if failed:
        raise typer.Exit(1)
