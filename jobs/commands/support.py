"""`fss support check`: what supports are worth, and what labelling with them would take, before anything is spent."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from jobs.options import JsonOption, RecipeOption, SetOption
from jobs.recipes import load_recipe


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Support sets: what they are worth.", no_args_is_help=True)
    group.command("check", help="Quality, time and cost from the supports alone, and 32 predictions.")(check)
    app.add_typer(group, name="support")


def check(
    supports: Annotated[str, typer.Option("--supports", help="JSON file, or folder with one a class.")],
    images: Annotated[str, typer.Option("--images", help="Photos to be labelled: speed and a contact sheet.")] = "",
    bundle: Annotated[str, typer.Option("--bundle", help="A bundle instead of the champion.")] = "",
    count: Annotated[int, typer.Option("--count", min=0, help="Photos of the whole job; 0: those of --images.")] = 0,
    price: Annotated[float, typer.Option("--price", min=0, help="Of an hour of this machine.")] = 0,
    page: Annotated[str, typer.Option("--page", help="Where the page goes.")] = "support_check.html",
    workspace: Annotated[str | None, typer.Option("--workspace", "-w", help="Whose champion; default: recipe.")] = None,
    recipe: RecipeOption = "demo",
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look at supports before labelling with them."""
    from fss_models.errors import FssError
    from pipelines.labelling.check import check_label_job

    for given, name in ((count, "--count"), (price, "--price")):
        if given and not images:
            raise FssError(f"{name} needs photos to measure the speed on", mend="give --images")
    read = load_recipe(recipe, overrides or [], out=workspace)
    worth, cost, told, url = check_label_job(read, supports=supports, images=images, bundle=bundle, count=count,
                                             price=price, page=page)
    if as_json:
        print(json.dumps({"classes": [asdict(w) for w in worth], "price": asdict(cost) if cost else None, "page": url}))
        return
    print("\n".join([*told, f"page: {url}"]))
