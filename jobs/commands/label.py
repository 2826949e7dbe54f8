"""`fss label`: label every photo below a URL with the champion."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer

from fss_models.errors import FssError
from jobs.options import (
    BareInstances,
    BundleOption,
    JsonOption,
    RecipeOption,
    ServiceOption,
    SetOption,
    SupportsOption,
    WorkspaceOption,
)
from jobs.recipes import load_recipe


class EngineName(StrEnum):
    """What computes the labels: a Serve deployment or a pool of actors."""

    serve = "serve"
    actors = "actors"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("label", cls=BareInstances,
                help="Label all photos below a URL. A second call labels only what is left.")(label)


def label(
    images: Annotated[str, typer.Option("--images", help="Photos to label: a folder or s3://bucket/prefix "
                                            "(gs://, az://), a pattern of names, a .csv or .parquet list of URLs, or "
                                            ".tar files.")],
    supports: SupportsOption,
    out: Annotated[str, typer.Option("--out", "-o", help="Folder or URL where parts and labels are written.")],
    workspace: WorkspaceOption = None,
    bundle: BundleOption = "",
    service: ServiceOption = "",
    engine: Annotated[EngineName, typer.Option("--engine", help="serve: a Ray Serve deployment computes the labels; "
                                               "actors: a pool of actors in Ray Data.")] = EngineName.serve,
    threshold: Annotated[float | None, typer.Option("--threshold", help="Pixels above this probability belong to the "
                                                    "object (default: the recipe's).")] = None,
    overlaps: Annotated[str | None, typer.Option("--overlaps", help="Masks of several classes may overlap (keep), or "
                                                 "each pixel gets one class (resolve; default: the recipe's).")] = None,
    instances: Annotated[str | None, typer.Option("--instances", help="One mask for each object: the method's own "
                                                  "(model; also --instances alone), the connected pieces of the mask "
                                                  "(pieces), or by SAM 2's decoder (prompts; default: the recipe's).")
                        ] = None,
    tile: Annotated[str | None, typer.Option("--tile", help="Label photos larger than so many pixels in tiles of that "
                                             "side, at full size; auto: where the supports' objects are too small "
                                             "without (default: the recipe's).")] = None,
    formats: Annotated[list[str] | None, typer.Option("--format", help="Output format besides COCO: coco_polygons, "
                                                      "parquet, yolo, semantic, label_studio, cvat, labelme. May be "
                                                      "repeated.")] = None,
    existing: Annotated[str | None, typer.Option("--existing", help="Annotations that are there already: a file or "
                                                 "folder of COCO, YOLO, CVAT, Label Studio, LabelMe or mask pictures.")
                        ] = None,
    existing_mode: Annotated[str | None, typer.Option("--existing-mode", help="keep: annotated photos keep what they "
                                                      "have; fill: masks are kept and what has none is labelled; "
                                                      "compare: all is labelled, with the IoU (default: the recipe's)."
                                                      )] = None,
    notify: Annotated[str | None, typer.Option("--notify", metavar="URL", help="http(s) URL that is told when the job "
                                               "is done, stopped or failed, signed with FSS_WEBHOOK_SECRET (default: "
                                               "the recipe's).")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Label photos as they arrive, each once, until Ctrl-C.")
                     ] = False,
    every: Annotated[float | None, typer.Option("--every", min=1, metavar="SECONDS", help="With --watch: time between "
                                                "two looks for photos (default: 10).")] = None,
    relabel: Annotated[bool, typer.Option("--relabel", help="With --watch: label photos again that were overwritten.")
                       ] = False,
    limit: Annotated[int, typer.Option("--limit", min=0, help="Label only this many photos; 0: all.")] = 0,
    recipe: RecipeOption = "demo",
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Label all photos below a URL and print where the labels are."""
    if not watch and (relabel or every is not None):
        raise FssError(f"{'--relabel' if relabel else '--every'} is for --watch", hint="add --watch, or leave it out")
    given = {"threshold": threshold, "overlaps": overlaps, "instances": instances, "tile": tile,
             "existing": json.dumps(existing) if existing else None, "existing_mode": existing_mode,
             "formats": json.dumps(formats) if formats else None, "notify": notify}
    changes = [*(overrides or []), *(f"label.{k}={v}" for k, v in given.items() if v is not None)]
    read = load_recipe(recipe, changes, out=workspace)

    from pipelines.labelling.outputs import summary_line
    from pipelines.labelling.run import LabelRequest, run_label_job

    request = LabelRequest(recipe=read, images=images, supports=supports, out=out, bundle=bundle, service=service,
                           engine=engine.value, limit=limit)
    if watch:
        from pipelines.labelling.watch import run_watch

        summary = run_watch(request, every=10 if every is None else every, relabel=relabel)
    else:
        summary = run_label_job(request)
    if as_json:
        print(json.dumps(summary))
        return
    if not summary:  # a watch without photos
        return
    print(summary_line(summary))
    print(f"labels: {summary['labels']}")
    for name, place in summary.get("formats", {}).items():
        print(f"{name}: {place}")
    if summary["failed"]:
        print(f"failures: {summary['failures']}")
