"""Hostile annotations of every format: rows read, failures or one line, never anything else (`tests.data.fuzz`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.exports import LAYOUTS

QUICK = 40  # examples of each layout
MINUTES = float(os.environ.get("FSS_FUZZ_MINUTES", "60"))  # of all layouts together, in `make test-slow`


def fuzz(layouts: list[str], folder: Path, *, examples: int, seconds: float, seed: int) -> dict[str, dict[str, int]]:
    """Counts of the outcomes of each layout; all layouts are built in one process."""
    command = [sys.executable, "-m", "tests.data.fuzz", ",".join(layouts), str(examples), str(seconds), str(seed),
               str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False,
                          cwd=Path(__file__).resolve().parents[2])
    lines = done.stdout.splitlines()
    last = folder / layouts[min(len(lines), len(layouts) - 1)]
    made = (last / "mutations.txt").read_text(errors="replace")[:2000] if (last / "mutations.txt").exists() else ""
    assert done.returncode == 0, f"status {done.returncode}, in {last}:\n{made}\n{done.stderr[-6000:]}"
    return dict(zip(layouts, map(json.loads, lines), strict=True))


def test_hostile_annotations_are_read_or_told(tmp_path: Path) -> None:
    for layout, counts in fuzz(list(LAYOUTS), tmp_path, examples=QUICK, seconds=120, seed=0).items():
        assert counts["read"] > 0, layout
        assert counts["read"] + counts["refused"] >= QUICK, layout


@pytest.mark.slow
@pytest.mark.timeout(60 * MINUTES + 600)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_hour_of_hostile_annotations(layout: str, tmp_path: Path) -> None:
    """FSS_FUZZ_MINUTES sets the time; the seed differs from run to run and is in the message of a failure."""
    seconds = MINUTES * 60 / len(LAYOUTS)
    seed = int.from_bytes(os.urandom(3))
    assert fuzz([layout], tmp_path, examples=10**9, seconds=seconds, seed=seed)[layout]["read"] > QUICK
