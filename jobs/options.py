"""Options that several sub-commands share."""

from __future__ import annotations

from typing import Annotated

import typer

RecipeOption = Annotated[str, typer.Option("--recipe", "-r", help="A shipped recipe's name or a YAML file.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Override a value: --set train.steps=100.")]
OutOption = Annotated[str | None, typer.Option("--out", "-o", help="Workspace: a local folder or s3://bucket/prefix.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
