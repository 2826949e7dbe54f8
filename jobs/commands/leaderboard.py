"""`fss leaderboard`: the table of a finished sweep and its winner."""

from __future__ import annotations

import sys

import typer

from jobs.options import JsonOption, OutOption, RecipeOption, SetOption
from jobs.recipes import load_recipe


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("leaderboard")
    def leaderboard(recipe: RecipeOption = "demo", sets: SetOption = None, out: OutOption = None,
                    as_json: JsonOption = False) -> None:
        """Method x fold with intervals, and the winner by the recipe's rule. Trains nothing."""
        from pipelines.training.choose import format_leaderboard, make_leaderboard
        from pipelines.training.sweep import collect_results

        chosen = load_recipe(recipe, sets, out=out)
        board = make_leaderboard(chosen, collect_results(chosen))
        print(format_leaderboard(board), file=sys.stderr if as_json else sys.stdout)
        if as_json:
            print(board.model_dump_json(indent=1))
