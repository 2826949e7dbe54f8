"""`fss report`: one HTML page about what was run."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from jobs.options import JsonOption, OutOption, RecipeOption, SetOption
from jobs.recipes import load_recipe


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("report", help="One self-contained HTML page about a workspace.")(report)


def report(
    recipe: RecipeOption = "demo",
    overrides: SetOption = None,
    out: OutOption = None,
    labels: Annotated[str, typer.Option("--labels", help="One more folder of a labelling job to show.")] = "",
    target: Annotated[str, typer.Option("--to", help="Where to write the page; default <out>/report.html.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Write the page."""
    from pipelines.report.page import write_report

    url = write_report(load_recipe(recipe, overrides, out=out), labels=labels, target=target)
    print(json.dumps({"report": url}) if as_json else f"report: {url}")
