"""`fss episodes make|show|compare`: fixed lists of test episodes, published or newly drawn."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.commands.data import DatasetOption
from jobs.options import JsonOption
from pipelines.base.progress import say

if TYPE_CHECKING:
    from pipelines.data.published import PublishedList

FAMILIES = "hsnet, bam (VRP-SAM and FCP), fssam, matcher, patnet, drawn (a new list)"
ListArgument = Annotated[str, typer.Argument(help="Path or URL of an episode list (.parquet).")]


def register(app: typer.Typer) -> None:
    """Add the sub-commands."""
    episodes = typer.Typer(no_args_is_help=True, help="Make, show and compare lists of test episodes.")

    @episodes.command()
    def make(
        dataset: DatasetOption,
        family: Annotated[str, typer.Option("--family", help=f"Rule by which a paper draws its episodes: {FAMILIES}.")],
        out: Annotated[str, typer.Option("--out", "-o", help="Path or URL of the .parquet file to write.")],
        fold: Annotated[int, typer.Option("--fold", "-f", help="Fold whose novel classes are tested; -1: all classes "
                                          "(only with family drawn).")] = 0,
        shots: Annotated[int, typer.Option("--shots", "-k", min=1, help="Supports of an episode.")] = 1,
        count: Annotated[int | None, typer.Option("--episodes", "-n", min=1, help="Number of episodes (default: the "
                                                  "family's).")] = None,
        seed: Annotated[int | None, typer.Option("--seed", help="Random seed (default: the family's; bam and fssam use "
                                                 "321).")] = None,
        lists: Annotated[str, typer.Option("--lists", help="Folder or URL of the published list files.")] = "",
        root: Annotated[str, typer.Option("--root", help="Raw data, for families that draw from its index.")] = "",
        shards: Annotated[str, typer.Option("--shards", help="Finished shards; the photos to draw from are chosen from "
                                            "them by the published rule.")] = "",
        split: Annotated[str, typer.Option("--split", help="With --shards: draw from the test or the train photos.")
                         ] = "test",
        workers: Annotated[int | None, typer.Option("--workers", min=1, help="Family fssam only: number of loader "
                                                    "workers that its draws imitate (default: 32).")] = None,
        as_json: JsonOption = False,
    ) -> None:
        """Make an episode list. The same options over the same files give the same list, id for id."""
        from pipelines.data.benchmarks.make import make_list
        from pipelines.data.benchmarks.protocol import ListRequest
        from pipelines.data.published import write_list

        ask = ListRequest(fold=fold, shots=shots, episodes=count, seed=seed, lists=lists, root=root, shards=shards,
                          split=split, workers=workers)
        listed = make_list(dataset, family, ask)
        write_list(out, listed)
        _print_summary(summary(listed, out), as_json)

    @episodes.command()
    def show(
        url: ListArgument,
        first: Annotated[int, typer.Option("--first", min=0, help="Number of episodes to print.")] = 5,
        as_json: JsonOption = False,
    ) -> None:
        """Print what a list contains, and its first episodes."""
        from pipelines.data.published import read_list

        listed = read_list(url)
        rows = [e.__dict__ for e in listed.episodes[:first]]
        _print_summary(summary(listed, url) | ({"first": rows} if as_json else {}), as_json)
        for number, row in enumerate([] if as_json else rows):
            print(f"{number}: {row['class_name']}: {row['query_name']} <- {', '.join(row['support_names'])}")

    @episodes.command()
    def compare(one: ListArgument, two: ListArgument) -> None:
        """Print "equal" (exit status 0), or the first row in which two lists differ (exit status 1)."""
        from pipelines.data.published import first_difference, read_list

        difference = first_difference(read_list(one), read_list(two))
        print(difference or "equal")
        if difference:
            raise typer.Exit(1)

    app.add_typer(episodes, name="episodes")


def summary(listed: PublishedList, url: str) -> dict[str, Any]:
    """The facts of a list, as a JSON object."""
    photos = {i for e in listed for i in (e.query, *e.supports)}
    counts = Counter(e.class_name for e in listed)
    return {
        "list": url, "dataset": listed.dataset, "family": listed.family, "status": listed.status, "fold": listed.fold,
        "shots": listed.shots, "seed": listed.seed, "episodes": len(listed), "images": len(photos),
        "classes": dict(sorted(counts.items())), "origin": listed.origin, "sha256": listed.sha256,
    }


def _print_summary(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(facts))
        return

    classes = facts["classes"]
    say(f"{facts['dataset']} {facts['family']} ({facts['status']}): fold {facts['fold']}, {facts['shots']}-shot, seed "
        f"{facts['seed']}, {facts['episodes']} episodes of {len(classes)} classes over {facts['images']} images, "
        f"from {facts['origin']}, content {facts['sha256'][:16]}: {facts['list']}")
