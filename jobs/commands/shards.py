"""`fss shards build`: build shards from labelled photos."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.options import JsonOption, OutOption, RecipeOption, SetOption
from jobs.recipes import load_recipe

if TYPE_CHECKING:
    from pipelines.data.schema import Manifest

ForceOption = Annotated[bool, typer.Option("--force", help="Rebuild everything, even over shards of another "
                                           "configuration.")]


def register(app: typer.Typer) -> None:
    """Add the sub-command."""
    shards = typer.Typer(no_args_is_help=True, help="Build shards: image table, class blocks, episode lists.")

    @shards.callback()
    def _root() -> None:
        """Without a callback typer would turn a group with one command into that command."""

    @shards.command()
    def build(
        recipe: RecipeOption = "demo", set_: SetOption = None, out: OutOption = None, force: ForceOption = False,
        as_json: JsonOption = False,
    ) -> None:
        """Build the shards of a recipe's data section. A second call builds only what is left or has changed."""
        loaded = load_recipe(recipe, set_, out=out)
        from pipelines.base.workspace import Workspace
        from pipelines.data.shards import build_shards

        url, start = Workspace(loaded.out).shards(loaded.data.name), time.monotonic()
        manifest = build_shards(loaded.data, url, force=force, update=True)
        facts = summary(url, manifest, time.monotonic() - start)
        if as_json:
            print(json.dumps(facts))
        show(facts)

    app.add_typer(shards, name="shards")


def summary(url: str, manifest: Manifest, seconds: float) -> dict[str, Any]:
    """What was built, as a JSON object."""
    from pipelines.data.failures import told
    from pipelines.data.shardset import Shards, copies_across

    total = sum(manifest.images.values())
    shards = Shards(url)
    rows = shards.failures.to_pylist()
    reasons = Counter(r["stage"] for r in rows)
    return {
        "shards": url, "dataset": manifest.dataset, "content_hash": manifest.content_hash, "images": manifest.images,
        "annotations": manifest.annotations, "classes": [c.model_dump() for c in manifest.classes],
        "dropped_classes": manifest.dropped_classes, "failures": manifest.failures, "failures_by_stage": dict(reasons),
        "exif": manifest.exif or {},
        "problems": told(rows), "copies": copies_across(shards),
        "seconds": round(seconds, 2), "images_per_second": round(total / max(seconds, 1e-6), 1),
    }


def show(facts: dict[str, Any]) -> None:
    """Print what was built as a short table on standard error."""
    from rich.console import Console
    from rich.table import Table

    console = Console(stderr=True)
    table = Table(title=f"{facts['dataset']}: {len(facts['classes'])} classes")
    for column in ("fold", "classes", "train photos", "test photos", "blocks"):
        table.add_column(column, justify="left" if column == "classes" else "right", overflow="fold")
    for fold in sorted({c["fold"] for c in facts["classes"]}):
        own = [c for c in facts["classes"] if c["fold"] == fold]
        sums = (sum(c[k] for c in own) for k in ("train_images", "test_images", "blocks"))
        table.add_row(str(fold), ", ".join(c["name"] for c in own), *(str(s) for s in sums))
    console.print(table)
    for name, reason in facts["dropped_classes"].items():
        console.print(f"class left out: {name} ({reason})", highlight=False, soft_wrap=True)
    if facts["failures"]:
        stages = ", ".join(f"{stage} {count}" for stage, count in facts["failures_by_stage"].items())
        console.print(f"problems by stage: {stages}; all are in {facts['shards']}/failures.parquet", highlight=False,
                      soft_wrap=True)
        for line in facts["problems"]:
            console.print(f"  {line}", highlight=False, soft_wrap=True, markup=False)
    if facts["copies"]:
        train, test = facts["copies"][0]
        console.print(f"{len(facts['copies'])} test photos are copies of train photos (the first: {test} of {train})",
                      highlight=False, soft_wrap=True, markup=False)
    if facts["exif"]:
        turned, stored = facts["exif"]["turned"], facts["exif"]["as_stored"]
        console.print(f"photos with an EXIF orientation: {turned} turned, {stored} read as stored (data.source.exif)",
                      highlight=False, soft_wrap=True)
    images = facts["images"]
    console.print(f"{images['train']} train and {images['test']} test photos in {facts['seconds']} s "
                  f"({facts['images_per_second']}/s), content {facts['content_hash'][:16]}: {facts['shards']}",
                  highlight=False, soft_wrap=True)
