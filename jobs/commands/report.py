"""`fss report`: one HTML page about a workspace."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.options import JsonOption, OutOption, SetOption
from jobs.recipes import load_recipe
from pipelines.config.recipe import Recipe

if TYPE_CHECKING:
    from pipelines.base.storage import Store

RECIPE_HELP = "Recipe (default: <out>/recipe.yaml, else the recipe of the workspace's last sweep, else demo)."


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("report", help="Write one self-contained HTML page about a workspace.")(report)


def report(
    recipe: Annotated[str, typer.Option("--recipe", "-r", help=RECIPE_HELP)] = "",
    overrides: SetOption = None,
    out: OutOption = None,
    labels: Annotated[str, typer.Option("--labels", help="Folder of another labelling job to show.")] = "",
    target: Annotated[str, typer.Option("--to", help="File or URL of the page (default: <out>/report.html).")] = "",
    as_json: JsonOption = False,
) -> None:
    """Write the page and print its URL."""
    from pipelines.report.page import write_report

    url = write_report(_recipe(recipe, overrides, out), labels=labels, target=target)
    print(json.dumps({"report": url}) if as_json else f"report: {url}")


def _recipe(name: str, overrides: list[str] | None, out: str | None) -> Recipe:
    """The named recipe, else the recipe stored in the workspace, else `demo`."""
    from pipelines.base.storage import Store

    if not name and out and (stored := _stored_recipe(Store(out))):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "recipe.yaml"
            file.write_bytes(stored)
            return load_recipe(str(file), overrides, out=out)
    return load_recipe(name or "demo", overrides, out=out)


def _stored_recipe(store: Store) -> bytes:
    """The YAML of the recipe that `fss demo` stored, else of the last sweep; b"" if there is neither."""
    import yaml

    from pipelines.sweeps.sweep import RECIPE

    if store.exists("recipe.yaml"):
        return store.read_bytes("recipe.yaml")
    return yaml.safe_dump(store.read_json(RECIPE)).encode() if store.exists(RECIPE) else b""
