"""`fss serve`: serve the workspace's champion, or the shipped one, over HTTP with a web page, until Ctrl-C."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.options import BundleOption, JsonOption, OutOption, RecipeOption, SetOption
from jobs.recipes import load_recipe


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("serve", help="Serve the champion over HTTP with a web page, until Ctrl-C.")(serve)


def serve(
    recipe: RecipeOption = "demo",
    overrides: SetOption = None,
    out: OutOption = None,
    bundle: BundleOption = "",
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on; any but loopback needs FSS_TOKEN.")
                    ] = None,
    port: Annotated[int | None, typer.Option("--port", "-p", help="Port to listen on; 0: any free port.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Serve the champion until Ctrl-C or SIGTERM."""
    changes = [f"serve.{k}={v}" for k, v in (("host", host), ("port", port)) if v is not None]
    read = load_recipe(recipe, [*(overrides or []), *changes], out=out)

    from pipelines.console.serve import serve_until_stopped

    serve_until_stopped(read, bundle=bundle, as_json=as_json)
