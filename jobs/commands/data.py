"""`fss data check`: is a raw copy of a published benchmark whole?"""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fss_models.errors import FssError
from jobs.options import JsonOption
from pipelines.config.data import BENCHMARKS
from pipelines.data.benchmarks.check import LayoutReport, check_benchmark

DatasetOption = Annotated[str, typer.Option("--dataset", "-d", help=f"One of: {', '.join(BENCHMARKS)}.")]
SubsetOption = Annotated[bool, typer.Option("--subset", help="A part of the dataset is wanted: fewer files are fine.")]


def register(app: typer.Typer) -> None:
    """Add the sub-command."""
    data = typer.Typer(no_args_is_help=True, help="Raw copies of published benchmarks.")

    @data.callback()
    def _root() -> None:
        """Keeps `check` a sub-command of its own."""

    @data.command()
    def check(
        dataset: DatasetOption,
        root: Annotated[str, typer.Option("--root", help="The raw data: a local folder or s3://bucket/prefix.")],
        lists: Annotated[str, typer.Option("--lists", help="The published lists, where the raw data has none.")] = "",
        subset: SubsetOption = False,
        as_json: JsonOption = False,
    ) -> None:
        """Count files and open the index; say what is missing and where to get it. Exit status 2 if incomplete."""
        report = check_benchmark(dataset, root, lists=lists, subset=subset)
        if as_json:
            print(json.dumps(report.as_json()))
        show(report)
        if not report.complete:
            raise FssError(f"incomplete: {'; '.join(report.problems)}", where=report.root)

    app.add_typer(data, name="data")


def show(report: LayoutReport) -> None:
    """A short table on standard error."""
    console = Console(stderr=True)
    mark = "" if report.verified else " (unverified)"
    table = Table(title=f"{report.dataset}{mark} at {report.root}")
    for column in ("part", "files", "found", "published", "state"):
        table.add_column(column, justify="right" if column in ("found", "published") else "left", overflow="fold")
    for p in report.parts:
        table.add_row(p.what, p.where, str(p.found), "?" if p.published is None else str(p.published), p.state)
    console.print(table, highlight=False)
    lines = [f"get {p.what}: {p.get}" for p in report.parts if p.state != "ok"] + ([report.note] if report.note else [])
    if report.photos:
        lines.append("usable: " + ", ".join(f"{n} {split}" for split, n in sorted(report.photos.items())))
    if report.classes:
        lines.append("classes: " + ", ".join(f"{n} in fold {f}" if f != "none" else f"{n} in no fold"
                                             for f, n in sorted(report.classes.items())))
    lines += [f"{count} left out ({reason})" for reason, count in sorted(report.unusable.items())[:10]]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
