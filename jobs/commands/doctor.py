"""`fss doctor`: what this machine has, what is missing, and how to fix it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from jobs.options import JsonOption
from pipelines.base.text_table import text_table

MARKS = {"ok": "ok", "optional": "--", "missing": "MISSING"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor", help="Show what this machine has, what is missing, and how to fix it.")(doctor)


def doctor(
    out: Annotated[str, typer.Option("--out", "-o", help="Folder or URL where results will be written.")] = ".",
    as_json: JsonOption = False,
) -> None:
    """Check the machine. The exit status is 1 if something required is missing."""
    from jobs.doctor import run_checks

    checks = run_checks(out)
    missing = [c for c in checks if c.state == "missing"]
    if as_json:
        print(json.dumps({"ready": not missing, "checks": [asdict(c) for c in checks]}))
    else:
        rows = [row for check in checks for row in ((MARKS[check.state], check.name, check.found),
                                                    ("", "", f"-> {check.hint}")) if row[0] or check.hint]
        print(text_table(rows, left=(1, 2)))
        print("this machine is ready" if not missing else f"{len(missing)} required things are missing")
    if missing:
        raise typer.Exit(1)
