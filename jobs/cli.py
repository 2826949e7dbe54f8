"""The `fss` command. A sub-command is a module of `jobs.commands` with a `register(app)` function.

What `fss --help` and a line about a mistake need is imported here and in the commands' modules; all else is imported
when a command's work begins (`tests/jobs/test_startup.py`).
"""

from __future__ import annotations

import importlib
import logging
import os
import pkgutil
import signal
import sys
from typing import Any

import typer
from typer.core import TyperGroup

import jobs.commands
from fss_models.errors import FssError
from pipelines.base.cluster import prepare_environment
from pipelines.base.outcome import error_line

PANELS = {  # the help's panels, and their commands in the order of use
    "Start here": ("doctor", "demo", "plan"),
    "Data": ("shards", "episodes", "data", "features"),
    "Train and compare": ("sweep", "leaderboard", "promote", "train", "eval", "compare", "gallery", "search", "report"),
    "Label": ("support", "label", "review", "calibrate", "serve", "integrations"),
    "Bundles and weights": ("bundles", "weights"),
    "Cluster": ("submit", "jobs", "local"),
    "Research": ("reproduce", "analyse", "pretrain", "verify-golden"),
}
PANEL_OF = {name: panel for panel, names in PANELS.items() for name in names}


class OrderedGroup(TyperGroup):
    """Lists the commands in the order of `PANELS`."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The commands' names."""
        return sorted(super().list_commands(ctx), key=list(PANEL_OF).index)


def make_app() -> typer.Typer:
    """Build the `fss` command with all its sub-commands."""
    app = typer.Typer(name="fss", cls=OrderedGroup, no_args_is_help=True, pretty_exceptions_enable=False,
                      help="Few-shot segmentation: from a bucket of images and a few masks to a labelled dataset.")

    @app.callback()
    def _root(verbose: bool = typer.Option(False, "--verbose", "-v", help="Show the logs of all libraries.")) -> None:
        logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(message)s")

    for module in pkgutil.iter_modules(jobs.commands.__path__):
        importlib.import_module(f"jobs.commands.{module.name}").register(app)
    registered: list[Any] = [*app.registered_commands, *app.registered_groups]
    for command in registered:
        command.rich_help_panel = PANEL_OF[command.name]
    return app


def main() -> None:
    """Run `fss`. A user's mistake ends with one line and exit status 2; SIGTERM ends a command as Ctrl-C does (130)."""
    prepare_environment()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        make_app()()
    except FssError as error:
        if os.environ.get("FSS_TRACE"):
            raise
        print(f"error: {error_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; run the same command again to continue", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
