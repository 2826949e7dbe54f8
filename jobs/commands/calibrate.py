"""`fss calibrate`: fit a calibrator, which turns raw scores into probabilities, and store it in the bundle."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from jobs.options import JsonOption, RecipeOption, SetOption
from jobs.recipes import load_recipe


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("calibrate", help="Fit a bundle's calibrator, which turns its scores into probabilities.")(calibrate)


def calibrate(
    bundle: Annotated[str, typer.Option("--bundle", help="Folder or URL of the bundle. It is changed in place.")],
    shards: Annotated[str, typer.Option("--shards", help="Folder or URL of the shards. Only train photos are read.")],
    recipe: RecipeOption = "demo",
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fit a bundle's calibrator and print its quality on held-out classes."""
    config = load_recipe(recipe, overrides or [], out=None).calibrate

    import torch

    from fss_models.calibration import summary
    from pipelines.base.progress import Bar
    from pipelines.data.shardset import Shards
    from pipelines.selection.calibrate import calibrate_bundle

    with Bar("calibrate", config.sets, unit="support sets") as bar:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        info, made = calibrate_bundle(bundle, Shards(shards), config, device=device,
                                      on_progress=lambda done, _: bar.step(1))
    about = {"bundle_id": info.bundle_id, "calibrator": info.calibrator, **made.about}
    if as_json:
        print(json.dumps(about))
        return
    print(summary(made.about))
    for what in ("presence", "good") if "auroc_presence" in about else ():
        print(f"{what}: AUROC {about[f'auroc_{what}']}, calibration error {about[f'ece_{what}']} on held-out classes")
