"""`fss features build|info`: features of frozen encoders, computed once and read by training runs."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from jobs.options import JsonOption, OutOption, RecipeOption, SetOption
from jobs.recipes import load_recipe
from pipelines.base.progress import say

VerifyOption = Annotated[bool, typer.Option("--verify", help="Read every part and compare it with its stored hash.")]


def register(app: typer.Typer) -> None:
    """Add the sub-commands."""
    features = typer.Typer(no_args_is_help=True, help="Compute and list kept features of frozen encoders.")

    @features.command()
    def build(recipe: RecipeOption = "demo", sets: SetOption = None, out: OutOption = None,
              as_json: JsonOption = False) -> None:
        """Compute the features that the recipe's runs need. The size is printed before anything is written.

        Training does the same by itself. A second call computes only what is missing.
        """
        chosen = load_recipe(recipe, sets, out=out)

        from pipelines.base.cluster import cluster
        from pipelines.features.build import ensure_features
        from pipelines.sweeps.plan import plan_sweep

        with cluster() as ray:
            folders = ensure_features(chosen, plan_sweep(chosen), ray)
        _print_folders(folders, [f"{f['written']} of {f['records']} records written in {f['seconds']} s for "
                                 f"{', '.join(f['methods'])}: {f['features']}" for f in folders], as_json)

    @features.command()
    def info(recipe: RecipeOption = "demo", sets: SetOption = None, out: OutOption = None, verify: VerifyOption = False,
             as_json: JsonOption = False) -> None:
        """List the features in the recipe's features folder."""
        chosen = load_recipe(recipe, sets, out=out)

        from pipelines.features.build import features_url
        from pipelines.features.info import describe_features

        folders = describe_features(features_url(chosen), verify=verify)
        _print_folders(folders, [_line(f) for f in folders] or ["no features are stored here"], as_json)

    app.add_typer(features, name="features")


def _line(facts: dict[str, Any]) -> str:
    from pipelines.features.build import format_bytes

    size = f"{facts['parts']} parts, {format_bytes(facts['bytes'])}"
    if not facts["finished"]:
        return f"{facts['features']}: unfinished, {size}"
    maps = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in facts["maps"].items())
    verified = ", every part matches its hash" if "verified_parts" in facts else ""
    return (f"{facts['features']}: {facts['records']} records of {facts['photos']} photos, {size} "
            f"({facts['precision']}), maps {maps}, encoder {facts['encoder']}{verified}")


def _print_folders(folders: list[dict[str, Any]], lines: list[str], as_json: bool) -> None:

    if as_json:
        print(json.dumps({"folders": folders}))
    for line in lines:
        say(line)
