"""`fss local`: a small cluster on this machine without containers: Ray nodes, an S3 server, an MLflow server."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated

import typer

DirOption = Annotated[str, typer.Option("--dir", help="Folder for the cluster's data, logs and credentials.")]
DEFAULT = "out/local"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="Run Ray nodes, an S3 server and an MLflow server on this machine.")
    group.command("up", help='Start the cluster and print its variables; use as: eval "$(fss local up)".')(up)
    group.command("down", help="Stop the cluster. Its data and logs stay.")(down)
    group.command("add", help="Start one more worker.")(add)
    group.command("kill", help="Kill a worker at once, as if its machine were lost.")(kill)
    app.add_typer(group, name="local")


def up(
    folder: DirOption = DEFAULT,
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="Number of Ray nodes, including the head.")] = 3,
    cpus: Annotated[float, typer.Option("--cpus", min=0.5, help="Logical CPUs of each node.")] = 1.0,
) -> None:
    """Start everything and print the variables to export."""
    from infra.local import topology

    local = topology.up(folder, nodes=nodes, cpus=cpus)
    if len(local.nodes) != nodes:
        print(f"# the cluster runs already, with {len(local.nodes)} nodes: use `fss local add`, or first "
              "`fss local down`", file=sys.stderr)
    print(f"# {', '.join(local.servers)}; bucket {local.bucket}; dashboard {local.dashboard}", file=sys.stderr)
    for name, value in local.env.items():
        print(f"export {name}={shlex.quote(value)}")


def down(folder: DirOption = DEFAULT) -> None:
    """Stop all processes of the cluster."""
    from infra.local import topology

    print("stopped" if topology.down(folder) else "nothing was running", file=sys.stderr)


def add(folder: DirOption = DEFAULT) -> None:
    """Start one more worker and print its name."""
    from infra.local import topology

    print(topology.add_node(folder))


def kill(name: Annotated[str, typer.Argument(help="Name of the worker, such as worker-1.")],
         folder: DirOption = DEFAULT) -> None:
    """Kill a worker."""
    from infra.local import topology

    topology.kill_node(folder, name)
