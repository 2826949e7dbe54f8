"""`fss data duplicates`: photos that are in two datasets, or twice in one."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from jobs.options import JsonOption
from pipelines.base.progress import say


def register(app: typer.Typer) -> None:
    """Add the sub-command to the group `data`."""
    group = next(g.typer_instance for g in app.registered_groups if g.name == "data")
    assert group is not None

    @group.command()
    def duplicates(
        places: Annotated[list[str], typer.Argument(help="Folders or s3://bucket/prefix with photos.")],
        like: Annotated[float, typer.Option("--like", min=0, max=1, help="Largest share of differing marks of a "
                                            "pair; 0 finds copies only, unlike photos have 0.67.")] = 0.25,
        as_json: JsonOption = False,
    ) -> None:
        """List photos that show the same picture, at any size and compression, also mirrored.

        A photo that is tested must not be a copy of one that is trained on. Nothing is deleted.
        """
        from pipelines.data.duplicates import find_duplicates

        pairs, unread = find_duplicates(places, like=like)
        if as_json:
            print(json.dumps({"pairs": [asdict(p) for p in pairs], "unread": unread}))
        for problem in unread:
            say(f"not read: {problem}")
        for pair in pairs:
            say(f"{pair.differing:.3f}  {pair.first}  {pair.second}{'  (mirrored)' if pair.mirrored else ''}")
        say(f"{len(pairs)} pairs of photos look alike" if pairs else "no two photos look alike")
