"""`fss support check`: how good supports are, and the time and cost of labelling with them, before a job starts."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from jobs.options import BundleOption, JsonOption, RecipeOption, SetOption, SupportsOption, WorkspaceOption
from jobs.recipes import load_recipe


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Check support sets before a labelling job.", no_args_is_help=True)
    group.command("check", help="Estimate quality, time and cost from the supports, and show 32 predictions.")(check)
    app.add_typer(group, name="support")


def check(
    supports: SupportsOption,
    images: Annotated[str, typer.Option("--images", help="Folder or s3://bucket/prefix of photos, to measure the speed "
                                        "and show predictions.")] = "",
    bundle: BundleOption = "",
    count: Annotated[int, typer.Option("--count", min=0, help="Number of photos in the whole job; 0: those of "
                                       "--images.")] = 0,
    price: Annotated[float, typer.Option("--price", min=0, help="Price of an hour of this machine.")] = 0,
    page: Annotated[str, typer.Option("--page", help="File or URL of the page to write.")] = "support_check.html",
    workspace: WorkspaceOption = None,
    recipe: RecipeOption = "demo",
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print what the supports of each class are good for, and write a page about them."""
    from fss_models.errors import FssError
    for given, name in ((count, "--count"), (price, "--price")):
        if given and not images:
            raise FssError(f"{name} needs photos on which the speed is measured", hint="give --images")
    read = load_recipe(recipe, overrides or [], out=workspace)

    from pipelines.labelling.check import check_label_job

    worth, cost, told, url = check_label_job(read, supports=supports, images=images, bundle=bundle, count=count,
                                             price=price, page=page)
    if as_json:
        print(json.dumps({"classes": [asdict(w) for w in worth], "price": asdict(cost) if cost else None, "page": url}))
        return
    print("\n".join([*told, f"page: {url}"]))
