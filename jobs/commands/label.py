"""`fss label`: every photo under a URL, through the deployed champion."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer

from jobs.options import JsonOption, RecipeOption, SetOption
from jobs.recipes import load_recipe


class EngineName(StrEnum):
    """Who computes labels."""

    serve = "serve"
    actors = "actors"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("label", help="Label all photos under a URL; started again it does only what is left.")(label)


def label(
    images: Annotated[str, typer.Option("--images", help="Folder or s3://bucket/prefix of photos.")],
    supports: Annotated[str, typer.Option("--supports", help="JSON file, or folder with one a class.")],
    out: Annotated[str, typer.Option("--out", "-o", help="Where parts and labels go.")],
    workspace: Annotated[str | None, typer.Option("--workspace", "-w", help="Whose champion; default: recipe.")] = None,
    bundle: Annotated[str, typer.Option("--bundle", help="A bundle instead of the champion; shipped: fss's own.")] = "",
    service: Annotated[str, typer.Option("--service", help="Address of a running service.")] = "",
    engine: Annotated[EngineName, typer.Option("--engine", help="serve: a deployment; actors: a pool in Ray Data.")
                      ] = EngineName.serve,
    threshold: Annotated[float | None, typer.Option("--threshold", help="Probability of an object's pixel.")] = None,
    overlaps: Annotated[str | None, typer.Option("--overlaps", help="Of several classes: keep, or resolve.")] = None,
    formats: Annotated[list[str] | None, typer.Option("--format", help="Beside COCO: coco_polygons, parquet, yolo, "
                                                      "semantic, label_studio, cvat; may be repeated.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=0, help="Only the first photos; 0: all.")] = 0,
    recipe: RecipeOption = "demo",
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Label all photos under a URL."""
    from pipelines.labelling.outputs import summary_line
    from pipelines.labelling.run import LabelRequest, run_label_job

    given = {"threshold": threshold, "overlaps": overlaps, "formats": json.dumps(formats) if formats else None}
    changes = [*(overrides or []), *(f"label.{k}={v}" for k, v in given.items() if v is not None)]
    read = load_recipe(recipe, changes, out=workspace)
    summary = run_label_job(LabelRequest(recipe=read, images=images, supports=supports, out=out, bundle=bundle,
                                         service=service, engine=engine.value, limit=limit))
    if as_json:
        print(json.dumps(summary))
        return
    print(summary_line(summary))
    print(f"labels: {summary['labels']}")
    for name, place in summary.get("formats", {}).items():
        print(f"{name}: {place}")
    if summary["failed"]:
        print(f"failures: {summary['failures']}")
