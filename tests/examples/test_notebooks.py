"""The notebooks run from top to bottom."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples"
QUICK = ["first_mask"]
NOTEBOOKS = [pytest.param(p, id=p.stem, marks=[] if p.stem in QUICK else pytest.mark.slow)
             for p in sorted(EXAMPLES.glob("*.ipynb"))]


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FSS_SHIPPED")
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(path, as_version=4)
    assert all(not c.get("outputs") for c in notebook.cells)  # kept without outputs: these would grow old
    done = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [o for c in done.cells for o in c.get("outputs", [])]
    assert any("image/png" in o.get("data", {}) or o.get("text") for o in shown)
