"""`fss serve`: the workspace's champion, or the shipped one, behind HTTP and a web page, until Ctrl-C."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.options import JsonOption, OutOption, RecipeOption, SetOption
from jobs.recipes import load_recipe


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("serve", help="Serve the champion over HTTP with a web page, until Ctrl-C.")(serve)


def serve(
    recipe: RecipeOption = "demo",
    overrides: SetOption = None,
    out: OutOption = None,
    bundle: Annotated[str, typer.Option("--bundle", help="A bundle instead of the champion; shipped: fss's own.")] = "",
    host: Annotated[str | None, typer.Option("--host", help="Address; others than loopback need FSS_TOKEN.")] = None,
    port: Annotated[int | None, typer.Option("--port", "-p", help="0 takes any free one.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Serve the champion until Ctrl-C or SIGTERM."""
    from pipelines.console.serve import serve_until_stopped

    changes = [f"serve.{k}={v}" for k, v in (("host", host), ("port", port)) if v is not None]
    read = load_recipe(recipe, [*(overrides or []), *changes], out=out)
    serve_until_stopped(read, bundle=bundle, as_json=as_json)
