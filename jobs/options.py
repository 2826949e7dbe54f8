"""Options that several sub-commands share."""

from __future__ import annotations

from typing import Annotated

import typer
from typer.core import TyperCommand

RecipeOption = Annotated[str, typer.Option("--recipe", "-r", help="Name of a shipped recipe, or a YAML file.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Change a value of the recipe, such as --set "
                                                     "train.steps=100. May be repeated.")]
OutOption = Annotated[str | None, typer.Option("--out", "-o", help="Workspace: a local folder or s3://bucket/prefix "
                                               "(default: the recipe's).")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
WorkspaceOption = Annotated[str | None, typer.Option("--workspace", "-w", help="Workspace whose champion is used "
                                                     "(default: the recipe's).")]
BundleOption = Annotated[str, typer.Option("--bundle", help="Bundle to use instead of the champion: a folder or URL "
                                           "(hf:// too), or `shipped` for the one that ships with fss.")]
SupportsOption = Annotated[str, typer.Option("--supports", help="JSON file with marked photos, or folder with one "
                                             "folder per class.")]
ServiceOption = Annotated[str, typer.Option("--service", help="Address of a running service to label with.")]


class BareInstances(TyperCommand):
    """A command that reads `--instances` without a value as `--instances model`."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Give the option its value where no word or another option follows."""
        following = [*args[1:], "--"]
        return super().parse_args(ctx, [f"{word}=model" if word == "--instances" and after.startswith("-") else word
                                        for word, after in zip(args, following, strict=False)])
