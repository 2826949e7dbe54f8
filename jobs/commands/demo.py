"""`fss demo`: the whole chain, from photos to labels and a report. A second call does only what is left."""

from __future__ import annotations

import json
import re
from typing import Annotated

import typer

from fss_models.errors import FssError
from jobs.options import JsonOption, SetOption
from jobs.recipes import load_recipe
from pipelines.config.recipe import Recipe

FOLDS = "sweep.folds=[0, 1]"  # two of the four, so that a demo takes minutes; --set sweep.folds=[] takes all


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo", help="Run the whole chain on generated or your own images and write a report.")(demo)


def demo(data: Annotated[str, typer.Option("--data", help="COCO directory to use instead of generated images.")] = "",
         recipe: Annotated[str, typer.Option("--recipe", "-r",
                                             help="Name of a shipped recipe, or a YAML file (default: "
                                             "demo, or demo_coco with --data).")] = "", overrides: SetOption = None,
         out: Annotated[str | None, typer.Option("--out", "-o", help="Workspace: a local folder or s3://bucket/prefix "
                                                 "(default: out/demo, or out/NAME with --data).")] = None,
         class_name: Annotated[str,
                               typer.Option("--class", help="Class to label (default: the class with most held-out "
                                            "photos).")] = "", as_json: JsonOption = False,) -> None:
    """Build shards, run the sweep, promote the winner, label held-out photos, write the report."""
    read = demo_recipe(data, recipe, overrides or [], out)

    from jobs.demo_chain import DemoChain
    from pipelines.base.progress import say
    from pipelines.base.workspace import Workspace

    chain = DemoChain(read)
    chain.run(class_name)
    total = sum(s["seconds"] for s in chain.stages)
    say(f"done in {total:.0f} s")
    report = Workspace(read.out).report
    print(json.dumps({"report": report, "stages": chain.stages}) if as_json else f"report: {report}")


def demo_recipe(data: str, name: str, overrides: list[str], out: str | None) -> Recipe:
    """Load the recipe of a demo. `data`: a COCO directory to use; a `splits.json` beside it that names it is used too.

    Raises `FssError` if `data` does not exist.
    """
    if not data:
        return load_recipe(name or "demo", [FOLDS, *overrides], out=out or "out/demo")

    from pipelines.base.storage import Store

    place = Store(data)
    if not place.exists():
        raise FssError("does not exist", where=data, hint="give a COCO directory (annotations/*.json and images)")
    title = re.sub(r"[^a-z0-9]+", "_", place.name.lower()).strip("_") or "photos"
    found = [f"data.source.root={place.url}", f"data.name={title}"]
    beside = place.parent
    if beside.exists("splits.json") and place.name in beside.read_json("splits.json"):
        found += [f"data.split.file={beside.path('splits.json')}", f"data.split.key={place.name}"]
    return load_recipe(name or "demo_coco", [FOLDS, *found, *overrides], out=out or f"out/{title}")
