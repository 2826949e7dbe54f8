"""`fss eval`: score any bundle on a fold of the recipe's dataset."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from jobs.options import JsonOption, OutOption, RecipeOption, SetOption
from jobs.recipes import load_recipe


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("eval")
    def evaluate(
        bundle: Annotated[str, typer.Option("--bundle", "-b", help="URL of the bundle.")],
        recipe: RecipeOption = "demo",
        fold: Annotated[int, typer.Option("--fold", "-f", help="Which fold's classes; -1: all classes.")] = 0,
        sets: SetOption = None, out: OutOption = None, as_json: JsonOption = False,
    ) -> None:
        """mIoU and FB-IoU on the fold's fixed list of test photos. A bundle trained on one of them is refused."""
        from pipelines.training.sweep import eval_bundle

        result = eval_bundle(load_recipe(recipe, sets, out=out), bundle=bundle, fold=None if fold < 0 else fold)
        per_class = "\n".join(f"  {name:24s} {iou * 100:5.1f}" for name, iou in sorted(result.per_class.items()))
        line = (f"mIoU {result.miou * 100:.1f} ({result.interval[0] * 100:.1f}-{result.interval[1] * 100:.1f}), "
                f"FB-IoU {result.fb_iou * 100:.1f} on {result.episodes} episodes of list {result.list_hash[:12]}"
                f"{' (untrained model)' if result.untrained else ''}\n{per_class}")
        print(line, file=sys.stderr if as_json else sys.stdout)
        if as_json:
            print(json.dumps(result.model_dump(), indent=1))
