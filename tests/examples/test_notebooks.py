"""The notebooks run from top to bottom, alone and on a cluster that `ray start --head` began."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from infra.local.processes import free_port
from infra.local.ray_nodes import node_environment, start_head, wait_for_nodes

EXAMPLES = Path(__file__).parents[2] / "examples"
QUICK = ["first_mask"]
PATHS = sorted(EXAMPLES.glob("*.ipynb"))
NOTEBOOKS = [pytest.param(p, id=p.stem, marks=[] if p.stem in QUICK else pytest.mark.slow) for p in PATHS]


def run(path: Path, folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.delenv("FSS_SHIPPED")
    patch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    patch.setenv("IPYTHONDIR", str(folder / "ipython"))
    notebook = nbformat.read(path, as_version=4)
    assert all(not c.get("outputs") for c in notebook.cells)  # kept without outputs: these would grow old
    done = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    shown = [o for c in done.cells for o in c.get("outputs", [])]
    assert any("image/png" in o.get("data", {}) or o.get("text") for o in shown)


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(path, tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A cluster of one node that a person started, and the variables by which a program reaches it."""
    folder, address, dashboard = (tmp_path_factory.mktemp("head"), *(f"127.0.0.1:{free_port()}" for _ in range(2)))
    token = folder / "token"
    token.write_text(secrets.token_hex(16))
    node = node_environment(token, {"PYTHONPATH": str(EXAMPLES.parent), "FSS_SHIPPED": ""})
    with tempfile.TemporaryDirectory(prefix="fss-ray-") as session:  # a short path: Ray's sockets are below it
        server = start_head(folder, address, dashboard, Path(session), cpus=2, env=node)
        try:
            wait_for_nodes(f"http://{dashboard}", token.read_text(), 1, server, folder, wait_s=180)
            yield {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token.read_text()}
        finally:
            server.stop()


@pytest.mark.slow
@pytest.mark.parametrize("path", [p for p in PATHS if p.stem not in QUICK], ids=lambda p: p.stem)
def test_a_notebook_runs_on_a_cluster(path: Path, head: dict[str, str], tmp_path: Path,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """It uses the machines that RAY_ADDRESS names, and leaves them running."""
    for name, value in head.items():
        monkeypatch.setenv(name, value)
    run(path, tmp_path, monkeypatch)
