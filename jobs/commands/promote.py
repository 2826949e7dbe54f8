"""`fss promote`: refit the leaderboard's winner on all classes and make it the champion."""

from __future__ import annotations

import sys

import typer

from jobs.options import JsonOption, OutOption, RecipeOption, SetOption
from jobs.recipes import load_recipe


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("promote")
    def run(recipe: RecipeOption = "demo", sets: SetOption = None, out: OutOption = None,
            as_json: JsonOption = False) -> None:
        """Refit the leaderboard's winner on all classes, check it on held-out photos, and make it the champion.

        The bundle goes to the workspace's `champion` folder; the model registry's alias `champion` is set to it.
        """
        chosen = load_recipe(recipe, sets, out=out)

        from pipelines.base.workspace import Workspace
        from pipelines.selection.promote import promote, registered_model

        info = promote(chosen)
        cv, held = info.metrics["cross_validated"], info.metrics["held_out_images"]
        line = (f"champion of {registered_model(chosen)}: {info.method} {info.preset}, bundle {info.bundle_id} at "
                f"{Workspace(chosen.out).champion}\ncross-validated mIoU {cv['miou'] * 100:.1f} (unknown classes), "
                f"{held['miou'] * 100:.1f} on held-out photos of known classes")
        print(line, file=sys.stderr if as_json else sys.stdout)
        if as_json:
            print(info.model_dump_json(indent=1))
