"""`fss features build|info`: image features that no training changes, kept for training."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console

from jobs.options import JsonOption, OutOption, RecipeOption, SetOption
from jobs.recipes import load_recipe

VerifyOption = Annotated[bool, typer.Option("--verify", help="Read every part and compare it with its hash.")]


def register(app: typer.Typer) -> None:
    """Add the sub-commands."""
    features = typer.Typer(no_args_is_help=True, help="Kept features of frozen encoders (train.features).")

    @features.command()
    def build(recipe: RecipeOption = "demo", sets: SetOption = None, out: OutOption = None,
              as_json: JsonOption = False) -> None:
        """Compute what the recipe's runs need and is not there; its size is told before anything is written.

        Training does the same by itself. Stopped and started again, it does only what is left.
        """
        from pipelines.base.cluster import cluster
        from pipelines.features.build import ensure_features
        from pipelines.sweeps.plan import plan_sweep

        chosen = load_recipe(recipe, sets, out=out)
        with cluster() as ray:
            folders = ensure_features(chosen, plan_sweep(chosen), ray)
        _tell(folders, [f"{f['written']} of {f['records']} records written in {f['seconds']} s for "
                        f"{', '.join(f['methods'])}: {f['features']}" for f in folders], as_json)

    @features.command()
    def info(recipe: RecipeOption = "demo", sets: SetOption = None, out: OutOption = None, verify: VerifyOption = False,
             as_json: JsonOption = False) -> None:
        """What is kept where the recipe keeps features."""
        from pipelines.features.build import features_url
        from pipelines.features.info import describe_features

        folders = describe_features(features_url(load_recipe(recipe, sets, out=out)), verify=verify)
        _tell(folders, [_line(f) for f in folders] or ["no kept features here"], as_json)

    app.add_typer(features, name="features")


def _line(facts: dict[str, Any]) -> str:
    from pipelines.features.build import format_bytes

    size = f"{facts['parts']} parts, {format_bytes(facts['bytes'])}"
    if not facts["finished"]:
        return f"{facts['features']}: unfinished, {size}"
    maps = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in facts["maps"].items())
    verified = ", every part is what its hash says" if "verified_parts" in facts else ""
    return (f"{facts['features']}: {facts['records']} records of {facts['photos']} photos, {size} "
            f"({facts['precision']}), maps {maps}, by {facts['encoder']}{verified}")


def _tell(folders: list[dict[str, Any]], lines: list[str], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"folders": folders}))
    for line in lines:
        Console(stderr=True).print(line, highlight=False, soft_wrap=True)
