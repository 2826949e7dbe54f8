"""A real MLflow server for one machine. Its data are in a SQLite file, its artifacts in the bucket."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path

import httpx

from fss_models.errors import FssError
from infra.local.processes import Server, free_port, last_lines, spawn

QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # fss uses neither


def start_mlflow(folder: Path, artifacts: str, env: Mapping[str, str], *, port: int = 0) -> tuple[Server, str]:
    """Start the server; returns its process and its URL. It may be used after `wait_for_mlflow`.

    `artifacts`: URL where artifacts are stored; `env`: additional variables; `port` 0 chooses a free one.
    """
    port = port or free_port()
    command = [str(Path(sys.executable).with_name("mlflow")), "server", "--host", "127.0.0.1", "--port", str(port),
               "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--artifacts-destination", artifacts,
               "--workers", "1"]
    server = spawn("mlflow", command, folder=folder, env={**env, **QUIET})
    return server, f"http://127.0.0.1:{port}"


def wait_for_mlflow(server: Server, url: str, folder: Path, *, wait_s: float = 600.0) -> None:
    """Wait until the server answers. Raises `FssError` if it ends, or does not answer within `wait_s` seconds."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        if not server.alive() or time.monotonic() > deadline:
            raise FssError(f"the MLflow server did not start: {last_lines(folder, 'mlflow')}", where=str(folder))
        time.sleep(0.5)
