"""The packages of fss must come from one place. This file imports nothing but Python itself."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("fss_models", "pipelines", "infra")


def hidden_package(root: Path) -> str:
    """A line about a package of fss that another folder's hides, "" where all are found below `root`."""
    for name in PACKAGES:
        found = find_spec(name)
        places = [Path(p).resolve().parent for p in (found.submodule_search_locations or ())] if found else []
        if found and root not in places:
            where = places[0] / name if places else found.origin
            return (f"{where} hides the package {name!r} of fss (run `fss`, not `python -m jobs.cli`, or start from "
                    f"another folder; see also PYTHONPATH)")
    return ""


def check_own_code() -> None:
    """End the process with one line and exit status 2 if a package of fss is hidden by one of another folder."""
    if line := hidden_package(Path(__file__).resolve().parents[1]):
        print(f"error: {line}", file=sys.stderr)
        raise SystemExit(2)
