"""`fss search`: search hyper-parameters of methods, scored on held-out base classes."""

from __future__ import annotations

import sys

import typer

from jobs.options import JsonOption, OutOption, RecipeOption, SetOption
from jobs.recipes import load_recipe


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("search")
    def search_command(recipe: RecipeOption = "demo", sets: SetOption = None, out: OutOption = None,
                       as_json: JsonOption = False) -> None:
        """Try settings of the recipe's `search.space` for each of its methods, and write the best as recipes.

        Trials are scored on base classes that are held out from training, never on novel classes; Hyperband ends the
        poor ones early. A second call after a kill goes on with the same trials.
        """
        chosen = load_recipe(recipe, sets, out=out)

        from pipelines.selection.search import search
        from pipelines.selection.trials import format_search

        found = search(chosen)
        print(format_search(found), file=sys.stderr if as_json else sys.stdout)
        if as_json:
            print(found.model_dump_json(indent=1))
        if all(m.best is None for m in found.methods):
            raise typer.Exit(1)
