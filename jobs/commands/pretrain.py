"""`fss pretrain`: train SAM 2's parts above a frozen trunk, class-agnostically."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer

from jobs.options import JsonOption, SetOption
from jobs.recipes import load_pretraining


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("pretrain")
    def pretrain(
        recipe: Annotated[str, typer.Option("--recipe", "-r", help="nano_pretrain, or a YAML file.")] = "nano_pretrain",
        sets: SetOption = None,
        out: Annotated[str | None, typer.Option("--out", "-o", help="Folder or s3://bucket/prefix for the weights, the "
                                               "shards and checkpoints (default: the recipe's).")] = None,
        as_json: JsonOption = False,
    ) -> None:
        """Train nano's neck, memory and decoder on single objects and pseudo-videos.

        A second call continues from the last checkpoint.
        """
        config = load_pretraining(recipe, sets, out=out)

        from pipelines.base.progress import Bar
        from pipelines.base.storage import join
        from pipelines.pretraining.run import run_pretraining
        from pipelines.sweeps.owner import own_workspace

        with own_workspace(config.out), Bar(config.name, config.steps, unit="steps") as bar:
            about = run_pretraining(config, lambda row: bar.to(int(row["step"]), _note(row)))
        held = ", ".join(f"{k.removeprefix('iou_')} {v * 100:.1f}" for k, v in about.quality.items())
        print(f"{join(config.out, about.file)}: mean IoU on held-out photos: {held}",
              file=sys.stderr if as_json else sys.stdout)
        if as_json:
            print(json.dumps(asdict(about), indent=1))


def _note(row: dict[str, Any]) -> str:
    held = "".join(f" {k.removeprefix('iou_')} {v * 100:.1f}" for k, v in row.items() if k.startswith("iou_"))
    return f"loss {row['loss']:.3f}{held}"
