"""`fss train`: train and score one run of a recipe."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from fss_models.errors import FssError
from jobs.options import JsonOption, OutOption, RecipeOption, SetOption
from jobs.recipes import load_recipe


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("train")
    def train(
        recipe: RecipeOption = "demo",
        method: Annotated[str, typer.Option("--method", "-m", help="Method of the recipe to train (default: the only "
                                          "one that trains).")] = "",
        fold: Annotated[int, typer.Option("--fold", "-f", help="Fold whose classes are held out.")] = 0,
        seed: Annotated[int, typer.Option("--seed", help="Random seed of the run.")] = 0,
        sets: SetOption = None, out: OutOption = None, as_json: JsonOption = False,
    ) -> None:
        """Train and score one run. A second call continues from its last checkpoint."""
        chosen = load_recipe(recipe, sets, out=out)

        from pipelines.sweeps.sweep import run_one

        result = run_one(chosen, method=method, fold=fold, seed=seed)
        if result.error:
            raise FssError(result.error, where=result.run)
        line = (f"{result.run}: mIoU {result.miou * 100:.1f} ({result.interval[0] * 100:.1f}-"
                f"{result.interval[1] * 100:.1f}), FB-IoU {result.fb_iou * 100:.1f} on {result.episodes} episodes\n"
                f"bundle: {result.bundle}")
        print(line, file=sys.stderr if as_json else sys.stdout)
        if as_json:
            print(json.dumps(result.model_dump(), indent=1))
