"""`fss sweep run`: train and score every method on every fold, then show the leaderboard."""

from __future__ import annotations

import json
import sys

import typer

from jobs.options import JsonOption, OutOption, RecipeOption, SetOption
from jobs.recipes import load_recipe


def register(app: typer.Typer) -> None:
    """Add the command."""
    group = typer.Typer(no_args_is_help=True, help="Train and compare methods.")

    @group.command("run")
    def run(recipe: RecipeOption = "demo", sets: SetOption = None, out: OutOption = None,
            as_json: JsonOption = False) -> None:
        """Train (method x fold x seed) in parallel, score each run, write the leaderboard.

        Shards are built if they are missing. Started again, it does only what is left.
        """
        from pipelines.training.choose import format_leaderboard, make_leaderboard
        from pipelines.training.sweep import run_sweep

        chosen = load_recipe(recipe, sets, out=out)
        results = run_sweep(chosen)
        board = make_leaderboard(chosen, results)
        print(format_leaderboard(board), file=sys.stderr if as_json else sys.stdout)
        if as_json:
            document = {"runs": [r.model_dump() for r in results], "leaderboard": board.model_dump()}
            print(json.dumps(document, indent=1))
        if any(r.error for r in results):
            raise typer.Exit(1)

    app.add_typer(group, name="sweep")
