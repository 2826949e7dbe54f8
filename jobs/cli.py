"""The `fss` command. A sub-command is a module of `jobs.commands` with a `register(app)` function."""

from __future__ import annotations

import importlib
import logging
import os
import pkgutil
import signal
import sys

import typer

import jobs.commands
from fss_models.errors import FssError
from pipelines.base.cluster import prepare_environment
from pipelines.base.outcome import error_line


def make_app() -> typer.Typer:
    """Build the `fss` command with all its sub-commands."""
    app = typer.Typer(name="fss", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                      help="Few-shot segmentation: from a bucket of images and a few masks to a labelled dataset.")

    @app.callback()
    def _root(verbose: bool = typer.Option(False, "--verbose", "-v", help="Show the logs of all libraries.")) -> None:
        logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(message)s")

    for module in pkgutil.iter_modules(jobs.commands.__path__):
        importlib.import_module(f"jobs.commands.{module.name}").register(app)
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
