"""A small cluster on one machine, without containers: Ray nodes, an S3 server and an MLflow server.

All files are below one folder: `s3/`, `mlflow.db`, `token`, one log a process, and, while it runs, `local.json`.
Ray's session folder is in the system's temporary folder, since the paths of its sockets must be short.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from fss_models.errors import FssError
from infra.local import s3
from infra.local.mlflow_server import start_mlflow, wait_for_mlflow
from infra.local.processes import Server, free_port
from infra.local.ray_nodes import node_environment, start_head, start_worker, wait_for_nodes

STATE = "local.json"
ATTEMPTS, TOO_SLOW = 3, "timed out during startup"


@dataclass(frozen=True, kw_only=True)
class LocalCluster:
    """A running cluster: its addresses, its processes by name (`head`, `worker-1`, ..., `mlflow`), its storage."""

    folder: str
    session: str
    address: str
    dashboard: str
    mlflow: str
    cpus: float
    storage: dict[str, str]
    bucket: str
    servers: dict[str, Server] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        """Variables with which `fss submit` and S3 clients reach the cluster. The token itself stays in its file."""
        return {"RAY_API_SERVER_ADDRESS": self.dashboard, "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN_PATH": str(Path(self.folder) / "token"), "MLFLOW_TRACKING_URI": self.mlflow,
                **self.storage}

    @property
    def nodes(self) -> dict[str, Server]:
        """The Ray nodes by name, without those that were killed on purpose."""
        return {name: server for name, server in self.servers.items() if name != "mlflow"}

    def save(self) -> None:
        """Write `local.json`."""
        path = Path(self.folder) / STATE
        path.write_text(json.dumps(asdict(self), indent=1))
        path.chmod(0o600)  # S3's secret is in it


def read(folder: str | Path) -> LocalCluster | None:
    """The cluster of a folder; None if none was started there."""
    path = Path(folder).absolute() / STATE
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    return LocalCluster(**{**found, "servers": {name: Server(**s) for name, s in found["servers"].items()}})


def up(folder: str | Path, *, nodes: int = 3, cpus: float = 1.0) -> LocalCluster:
    """Start a cluster: an S3 server, MLflow, a head and `nodes` - 1 workers with `cpus` logical CPUs each.

    A cluster that runs already is left as it is; only a lost S3 server is started again. Leftovers of a crashed
    cluster are stopped first. Raises `FssError` if something does not start, after stopping everything else.
    """
    root = Path(folder).absolute()
    if running := read(root):
        if all(s.alive() for s in running.servers.values()) and s3.start(root / "s3").env == running.storage:
            return running
        down(root)  # leftovers of a crash
    root.mkdir(parents=True, exist_ok=True)
    try:
        return _start(root, nodes, cpus)
    except BaseException:
        down(root)
        raise


def _start(root: Path, nodes: int, cpus: float) -> LocalCluster:
    storage = s3.start(root / "s3")
    _token(root / "token")
    session = Path(tempfile.mkdtemp(prefix="fss-ray-"))
    mlflow, tracking = start_mlflow(root, f"{storage.url}/mlflow", storage.env)
    local = LocalCluster(folder=str(root), session=str(session), address=f"127.0.0.1:{free_port()}",
                         dashboard=f"http://127.0.0.1:{free_port()}", mlflow=tracking, cpus=cpus, storage=storage.env,
                         bucket=storage.url, servers={"mlflow": mlflow})
    local.save()
    wait_for_mlflow(mlflow, tracking, root)
    for name in ("head", *(f"worker-{i}" for i in range(1, nodes))):
        local = _with_node(local, name)
    return local


def _with_node(local: LocalCluster, name: str) -> LocalCluster:
    """Start a node and wait until it has joined; returns the cluster with it.

    Ray gives its own processes 30 s to start, which is too short on a busy machine, so a node has several attempts.
    """
    token, folder = Path(local.folder) / "token", Path(local.folder)
    env = node_environment(token, {**local.storage, "MLFLOW_TRACKING_URI": local.mlflow})
    count = 1 + sum(s.alive() for s in local.nodes.values())
    for attempt in range(1, ATTEMPTS + 1):
        if name == "head":
            server = start_head(folder, local.address, local.dashboard, Path(local.session), cpus=local.cpus, env=env)
        else:
            server = start_worker(folder, name, local.address, cpus=local.cpus, env=env)
        local = replace(local, servers={**local.servers, name: server})
        local.save()
        try:
            wait_for_nodes(local.dashboard, token.read_text(), count, server, folder)
            return local
        except FssError as error:
            server.stop(kill=True)
            if attempt == ATTEMPTS or TOO_SLOW not in error.what:
                raise
    raise AssertionError("unreachable")


def add_node(folder: str | Path) -> str:
    """Start one more worker; returns its name once it has joined.

    Raises `FssError` if no cluster runs or the worker does not start.
    """
    local = _running(folder)
    number = 1 + max((int(n.rpartition("-")[2]) for n in local.servers if n.startswith("worker-")), default=0)
    _with_node(local, f"worker-{number}")
    return f"worker-{number}"


def kill_node(folder: str | Path, name: str) -> None:
    """Kill a worker at once, as if its machine were lost. Raises `FssError` if there is no such worker."""
    local = _running(folder)
    workers = [n for n in local.nodes if n != "head"]
    if name not in workers:
        raise FssError(f"there is no worker {name!r}", where=local.folder, hint=f"workers: {', '.join(workers)}")
    local.servers[name].stop(kill=True)
    replace(local, servers={n: s for n, s in local.servers.items() if n != name}).save()


def down(folder: str | Path) -> bool:
    """Stop the cluster; returns whether anything ran. Data, logs and credentials stay for the next start."""
    root = Path(folder).absolute()
    local = read(root)
    ran = False
    if local:
        for name in sorted(local.servers, key=lambda n: n == "head"):  # the head last, so that nodes can leave
            ran = local.servers[name].stop() or ran
        shutil.rmtree(local.session, ignore_errors=True)
        (root / STATE).unlink(missing_ok=True)
    return s3.stop(root / "s3") or ran


def _running(folder: str | Path) -> LocalCluster:
    local = read(folder)
    if local is None or not local.servers.get("head", Server("", 0, 0.0)).alive():
        raise FssError("no cluster runs here", where=str(folder), hint="fss local up --dir ...")
    return local


def _token(path: Path) -> str:
    """The cluster's token, drawn once and stored in a file that only its owner can read."""
    if not path.exists():
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32))
    return path.read_text()
