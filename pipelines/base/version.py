"""Version of the package and of the code that runs."""

from __future__ import annotations

import subprocess
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def package_version() -> str:
    """Version of the installed package, "unknown" where it is not installed."""
    try:
        return version("fss")
    except PackageNotFoundError:
        return "unknown"


@lru_cache(maxsize=1)
def code_version() -> str:
    """Version of the package; in a checkout followed by the commit."""
    release = package_version()
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return release
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    return f"{release}+{found.stdout.strip()}" if found.returncode == 0 else release
