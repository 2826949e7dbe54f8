"""`fss leaderboard`: the table and the winner of a finished sweep; one table a cell if the recipe has a matrix."""

from __future__ import annotations

import json
import sys

import typer

from jobs.options import JsonOption, OutOption, RecipeOption, SetOption
from jobs.recipes import load_recipe


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("leaderboard")
    def leaderboard(recipe: RecipeOption = "demo", sets: SetOption = None, out: OutOption = None,
                    as_json: JsonOption = False) -> None:
        """Print the scores of a finished sweep, method x fold, and the winner by the recipe's rule."""
        boards = {}
        chosen = load_recipe(recipe, sets, out=out)

        from pipelines.selection.choose import format_leaderboard, make_leaderboard
        from pipelines.sweeps.matrix import expand_matrix
        from pipelines.sweeps.plan import collect_results

        for cell in expand_matrix(chosen):
            board = make_leaderboard(cell.recipe, collect_results(cell.recipe), cell.suffix)
            boards[cell.label] = board.model_dump()
            said = f"{cell.label}\n{format_leaderboard(board)}\n" if cell.label else format_leaderboard(board)
            print(said, file=sys.stderr if as_json else sys.stdout)
        if as_json:
            print(json.dumps(boards.get("") or {"leaderboards": boards}, indent=1))
