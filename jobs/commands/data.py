"""`fss data check`: whether a raw copy of a published benchmark is complete."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from fss_models.errors import FssError
from jobs.options import JsonOption
from pipelines.config.data import BENCHMARKS
from pipelines.data.benchmarks.check import LayoutReport, check_benchmark

DatasetOption = Annotated[str, typer.Option("--dataset", "-d", help=f"Benchmark, one of: {', '.join(BENCHMARKS)}.")]
SubsetOption = Annotated[bool, typer.Option("--subset", help="Accept a part of the dataset: fewer files are no error.")]


def register(app: typer.Typer) -> None:
    """Add the sub-command."""
    data = typer.Typer(no_args_is_help=True, help="Check raw copies of benchmarks and the sampling of training data.")

    @data.callback()
    def _root() -> None:
        """Without a callback typer would turn a group with one command into that command."""

    @data.command()
    def check(
        dataset: DatasetOption,
        root: Annotated[str, typer.Option("--root", help="Raw data: a local folder or s3://bucket/prefix.")],
        lists: Annotated[str, typer.Option("--lists", help="Folder or URL of the published lists, if the raw data has "
                                         "none.")] = "",
        subset: SubsetOption = False,
        as_json: JsonOption = False,
    ) -> None:
        """Count the files, read the index, and list what is missing and where to get it.

        The exit status is 2 if the copy is incomplete.
        """
        report = check_benchmark(dataset, root, lists=lists, subset=subset)
        if as_json:
            print(json.dumps(report.as_json()))
        show(report)
        if not report.complete:
            raise FssError(f"incomplete: {'; '.join(report.problems)}", where=report.root)

    app.add_typer(data, name="data")


def show(report: LayoutReport) -> None:
    """Print the report as a short table on standard error."""
    from rich.console import Console
    from rich.table import Table

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
