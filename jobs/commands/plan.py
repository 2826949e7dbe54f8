"""`fss plan`: estimate the hardware that a dataset, a sweep and a labelling job need."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from fss_models.errors import FssError
from jobs.options import JsonOption, RecipeOption, SetOption
from jobs.recipes import load_recipe
from pipelines.base.text_table import text_table

if TYPE_CHECKING:
    from pipelines.sizing.plan import SizingPlan

KINDS = ("measured", "published", "assumed")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("plan", help="Estimate hours, GPUs, cores, memory and storage for a dataset.")(plan)


def plan(
    images: Annotated[int, typer.Option("--images", "-n", min=1, help="Number of photos in the dataset; as many are "
                                        "labelled.")],
    method: Annotated[str, typer.Option("--method", "-m", help="Method whose speed is used.")] = "sansa",
    preset: Annotated[str, typer.Option("--preset", help="Preset (size) of that method.")] = "nano",
    gpus: Annotated[int, typer.Option("--gpus", min=0, help="GPUs of the cluster; 0: CPU cores only.")] = 0,
    cores: Annotated[int, typer.Option("--cores", min=1, help="CPU cores of the cluster.")] = 16,
    photo_kb: Annotated[float, typer.Option("--photo-kb", min=1, help="Mean size of a photo's file in kB.")] = 160.0,
    classes: Annotated[float, typer.Option("--classes-per-photo", min=0.01, help="Mean number of annotated classes in "
                                           "a photo.")] = 2.9,
    photo_size: Annotated[str, typer.Option("--photo-size", help="Width and height of a photo in pixels, like "
                                            "4000x3000 for a phone's.")] = "640x480",
    label_classes: Annotated[int, typer.Option("--label-classes", min=1, help="Number of classes that are labelled.")
                             ] = 1,
    recipe: RecipeOption = "demo",
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the estimate of each stage, and which of its figures were measured, published or assumed."""
    chosen = load_recipe(recipe, overrides)

    from pipelines.sizing.plan import SizingRequest, make_plan

    made = make_plan(SizingRequest(images=images, method=method, preset=preset, gpus=gpus, cores=cores,
                                   photo_kb=photo_kb, photo_size=_size(photo_size), classes_per_photo=classes,
                                   classes=label_classes, recipe=chosen))
    print(json.dumps(asdict(made), indent=1) if as_json else text(made))


def _size(given: str) -> tuple[int, int]:
    """(height, width) of WIDTHxHEIGHT. Raises `FssError` for anything else."""
    width, _, height = given.lower().partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise FssError(f"--photo-size is {given!r}", hint="write width and height in pixels, like 6000x4000")
    return int(height), int(width)


def text(plan: SizingPlan) -> str:
    """The plan as text: a table of stages, the figures behind it, and notes."""
    rows = [(s.name, _number(s.hours), str(s.gpus), str(s.cores), f"{s.memory_gb:,.1f}", _number(s.s3_gb),
              f"{s.work}; {s.memory}") for s in plan.stages]
    stages = text_table(rows, head=("stage", "hours", "GPUs", "cores", "memory GB", "S3 GB", "work"), left=(0, 6))
    figures = text_table([(f.kind, f"{f.what}: {_number(f.value)} {f.unit} ({f.source})".replace("  (", " ("))
                          for f in sorted(plan.figures, key=lambda f: KINDS.index(f.kind))], left=(0, 1))
    return "\n".join([stages, "", figures, "", *(f"note: {note}" for note in plan.notes)])


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
