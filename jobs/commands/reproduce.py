"""`fss reproduce`: the results tables of papers, our figures beside the published ones."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from fss_models.errors import FssError
from jobs.options import JsonOption, SetOption
from pipelines.base.text_table import text_table

if TYPE_CHECKING:
    from pipelines.papers.tables.missing import MissingFile

FIRST_GPU = "first-gpu"

TableArgument = Annotated[str, typer.Argument(help="Name of a shipped table, a YAML file, or first-gpu.")]
ListOption = Annotated[bool, typer.Option("--list", help="List the shipped tables.")]
ShowOption = Annotated[bool, typer.Option("--show", help="Run nothing; print published figures and results so far.")]
OutOption = Annotated[str | None, typer.Option("--out", "-o", help="Workspace: a local folder or s3://bucket/prefix "
                                               "(default: out/reproduce).")]
RowOption = Annotated[list[str] | None, typer.Option("--row", help="Run only this row. May be repeated.")]
ColumnOption = Annotated[list[str] | None, typer.Option("--column", help="Run only this column, by its key in the "
                                                        "table file. May be repeated.")]
RootOption = Annotated[list[str] | None, typer.Option("--root", help="DATASET=FOLDER: folder of a dataset. May be "
                                                      "repeated.")]
WeightOption = Annotated[list[str] | None, typer.Option("--weight", help="NAME=FILE: path of a weight file. May be "
                                                        "repeated.")]
CpuOption = Annotated[bool, typer.Option("--cpu", help=f"Only with {FIRST_GPU}: run without a GPU.")]


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("reproduce")
    def reproduce(
        table: TableArgument = "", list_them: ListOption = False, show: ShowOption = False, row: RowOption = None,
        column: ColumnOption = None, root: RootOption = None, weight: WeightOption = None, sets: SetOption = None,
        out: OutOption = None, as_json: JsonOption = False, cpu: CpuOption = False,
    ) -> None:
        """Run a published results table and print our figures beside the published ones.

        If data or weights are missing, lists what to put where and exits with status 2. A second call runs only what is
        left. Tables in one workspace share the runs that they have in common. first-gpu scores the authors' own
        checkpoints of SANSA and FSSAM on one fold each.
        """
        from jobs.tables import parse_places

        if list_them or not table:
            _print_tables(as_json)
            return
        roots, weights = parse_places(root, "--root"), parse_places(weight, "--weight")
        if (option := "--cpu" if cpu and table != FIRST_GPU else "--column" if column and table == FIRST_GPU else ""):
            raise FssError(f"{option} has no meaning for {table}", hint=f"leave out {option}")
        if table == FIRST_GPU:
            _first_gpu(show=show, rows=row or [], roots=roots, weights=weights, sets=sets or [],
                       out=out or "out/reproduce", as_json=as_json, cpu=cpu)
        else:
            _reproduce(table, show=show, rows=row or [], columns=column or [], roots=roots, weights=weights,
                       sets=sets or [], out=out or "out/reproduce", as_json=as_json)


def _print_tables(as_json: bool) -> None:
    from jobs.tables import list_tables, load_table

    found = {name: load_table(name)[1] for name in list_tables()}
    if as_json:
        print(json.dumps({n: {"title": t.title, "paper": t.paper, "rows": [r.name for r in t.rows],
                              "columns": {k: c.title for k, c in t.columns.items()}} for n, t in found.items()},
                         indent=1))
        return
    lines = [(name, f"{t.title} ({len(t.rows)} rows to run, {len(t.rivals)} published)") for name, t in found.items()]
    print(text_table([*lines, (FIRST_GPU, "Official checkpoints of SANSA and FSSAM, one fold each, on one GPU")],
                     left=(0, 1)))


def _reproduce(name: str, *, show: bool, rows: list[str], columns: list[str], roots: dict[str, str],
               weights: dict[str, str], sets: list[str], out: str, as_json: bool) -> None:
    from jobs.tables import load_table, make_cells
    from pipelines.papers.tables.missing import check_cells, find_missing
    from pipelines.papers.tables.outcome import collect_outcome, document
    from pipelines.papers.tables.run import run_cells
    from pipelines.papers.tables.show import render_text, write_table

    stem, table = load_table(name)
    cells = make_cells(table, rows=rows, columns=columns, roots=roots, weights=weights, sets=sets, out=out)
    check_cells(cells)
    left = [] if show else [c for c in cells if c.read_record() is None]
    _refuse_missing(find_missing(left), f"table {stem}")
    failed = {} if show else run_cells(cells)
    found = collect_outcome(stem, table, cells, sets)
    said = render_text(found) if show else f"{render_text(found)}\n\npage: {write_table(found, cells, out)}"
    print(said, file=sys.stderr if as_json else sys.stdout)
    if as_json:
        print(json.dumps(document(found, cells), indent=1))
    if failed:
        raise typer.Exit(1)


def _refuse_missing(missing: list[MissingFile], where: str) -> None:
    """Print what is missing and raise `FssError`, if anything is."""
    for m in missing:
        print("\n  ".join([f"{m.kind} {m.name}: not found at {m.place}", *m.instructions,
                           f"or elsewhere, with {m.option}"]), file=sys.stderr)
    if missing:
        raise FssError(f"cannot be run yet: {len(missing)} datasets or files are missing, listed above", where=where,
                       hint="put them there and run the same command again; --show prints the published figures")


def _first_gpu(*, show: bool, rows: list[str], roots: dict[str, str], weights: dict[str, str], sets: list[str],
               out: str, as_json: bool, cpu: bool) -> None:
    from jobs.first_gpu import check_device, document, find_missing, make_jobs, render_text, run_job

    jobs = make_jobs(rows=rows, roots=roots, weights=weights, sets=sets, out=out, cpu=cpu)
    if left := [] if show else [j for j in jobs if not j.read_record()]:
        check_device(cpu)
        _refuse_missing(find_missing(left), FIRST_GPU)
    for job in left:
        run_job(job)
    found = document(jobs, sets)
    print(render_text(found), file=sys.stderr if as_json else sys.stdout)
    if as_json:
        print(json.dumps(found, indent=1))
