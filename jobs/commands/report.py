"""`fss report`: one HTML page about what was run."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from jobs.options import JsonOption, OutOption, SetOption
from jobs.recipes import load_recipe
from pipelines.config import Recipe
from pipelines.storage import Store


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("report", help="One self-contained HTML page about a workspace.")(report)


def report(
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="Default: <out>/recipe.yaml, else demo.")] = "",
    overrides: SetOption = None,
    out: OutOption = None,
    labels: Annotated[str, typer.Option("--labels", help="One more folder of a labelling job to show.")] = "",
    target: Annotated[str, typer.Option("--to", help="Where to write the page; default <out>/report.html.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Write the page."""
    from pipelines.report.page import write_report

    url = write_report(_recipe(recipe, overrides, out), labels=labels, target=target)
    print(json.dumps({"report": url}) if as_json else f"report: {url}")


def _recipe(name: str, overrides: list[str] | None, out: str | None) -> Recipe:
    """The named recipe, else the one that the workspace keeps, else `demo`."""
    if not name and out and Store(out).exists("recipe.yaml"):
        with tempfile.TemporaryDirectory() as folder:
            kept = Path(folder) / "recipe.yaml"
            kept.write_bytes(Store(out).read_bytes("recipe.yaml"))
            return load_recipe(str(kept), overrides, out=out)
    return load_recipe(name or "demo", overrides, out=out)
