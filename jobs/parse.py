"""Checks an `fss` command line without running it, before it is submitted to a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import typer

from fss_models.errors import FssError
from jobs.recipes import load_pretraining, load_recipe

# Depending on its version, typer contains a copy of click or uses the installed one.
_UsageError: Any = typer.BadParameter.__mro__[1]


@dataclass(frozen=True)
class ParsedCommand:
    """A sub-command's path, such as `sweep run`, and the values of its options and arguments."""

    path: str
    values: dict[str, Any]

    @property
    def output(self) -> str | None:
        """Folder or URL that the command writes to: its --out, else its recipe's. None if it has no --out."""
        if "out" not in self.values or self.path == "doctor":
            return None
        if self.values["out"]:
            return str(self.values["out"])
        sets = self.values.get("sets") or self.values.get("overrides")
        load: Any = load_pretraining if self.path == "pretrain" else load_recipe
        return str(load(self.values.get("recipe") or "demo", sets).out)


def parse_command(arguments: Sequence[str]) -> ParsedCommand:
    """Parse `arguments` (without `fss`) as `fss` would.

    Raises `FssError` for what `fss` would refuse to parse. With `--help` the help is shown and the program exits.
    """
    from jobs.cli import make_app

    node: Any = typer.main.get_command(make_app())
    path: list[str] = []
    context, rest = None, list(arguments)
    try:
        while True:
            context = node.make_context(path[-1] if path else "fss", rest, parent=context)
            if not hasattr(node, "resolve_command"):
                return ParsedCommand(" ".join(path), dict(context.params))
            left = [*context._protected_args, *context.args]
            if not left:
                context.fail("Missing command.")
            name, node, rest = node.resolve_command(context, left)
            path.append(str(name))
    except _UsageError as error:
        raise FssError(error.format_message(), where=f"fss {' '.join(path)}".strip(), hint="see --help") from error


def check_output(parsed: ParsedCommand) -> None:
    """Raises `FssError` if the results would be written to the submission's working folder, which Ray deletes."""
    place = parsed.output
    if place is not None and "://" not in place and not place.startswith("/"):
        raise FssError("results in a relative folder are deleted when the submitted command ends", where=place,
                       hint="use --out s3://bucket/prefix, or an absolute folder that all nodes share")
