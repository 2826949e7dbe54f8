"""`fss verify-golden`: compare our implementations with tensors of the reference implementations."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

from jobs.options import JsonOption

if TYPE_CHECKING:
    from fss_models.verification.frame import GoldenCheck


def register(app: typer.Typer) -> None:
    """Add the sub-command."""

    @app.command("verify-golden")
    def verify_golden(
        folder: str = typer.Argument(help="Folder of golden cases."), as_json: JsonOption = False
    ) -> None:
        """Compare our methods with the golden cases of a folder, quantity by quantity.

        The exit status is 1 if any quantity is out of tolerance or is not covered by our code.
        """
        from fss_models.verification.frame import run_folder

        checks = []
        for check in run_folder(folder):
            checks.append(check)
            if not as_json:
                print(_line(check), flush=True)
        if as_json:
            print(json.dumps([c.as_dict() for c in checks]))
        if not all(c.passed for c in checks):
            raise typer.Exit(1)


def _line(check: GoldenCheck) -> str:
    verdict = "ok" if check.passed else "FAILED" if check.error == check.error else "NOT COVERED"
    figures = check.note or f"worst {check.error:.1e}, tolerance {check.tolerance:.0e}"
    return f"{check.case:<26} {check.quantity:<12} {figures:<40} {verdict}"
