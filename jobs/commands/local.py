"""`fss local`: a cluster's parts on this machine, without containers."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated

import typer

DirOption = Annotated[str, typer.Option("--dir", help="Where its data, logs and credentials are kept.")]
DEFAULT = "out/local"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="Ray nodes, an S3 server and an MLflow server on this machine.")
    group.command("up", help='Start them; use as: eval "$(fss local up)".')(up)
    group.command("down", help="End them; data and logs stay.")(down)
    group.command("add", help="Start one worker more.")(add)
    group.command("kill", help="End a worker at once, as a lost machine.")(kill)
    app.add_typer(group, name="local")


def up(
    folder: DirOption = DEFAULT,
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="Ray nodes, the head among them.")] = 3,
    cpus: Annotated[float, typer.Option("--cpus", min=0.5, help="Logical CPUs of each.")] = 1.0,
) -> None:
    """Start everything and print the variables to export."""
    from infra.local import topology

    local = topology.up(folder, nodes=nodes, cpus=cpus)
    if len(local.nodes) != nodes:
        print(f"# it runs already, with {len(local.nodes)} nodes: `fss local add`, or `fss local down` first",
              file=sys.stderr)
    print(f"# {', '.join(local.servers)}; bucket {local.bucket}; dashboard {local.dashboard}", file=sys.stderr)
    for name, value in local.env.items():
        print(f"export {name}={shlex.quote(value)}")


def down(folder: DirOption = DEFAULT) -> None:
    """End everything."""
    from infra.local import topology

    print("stopped" if topology.down(folder) else "was not running", file=sys.stderr)


def add(folder: DirOption = DEFAULT) -> None:
    """One worker more."""
    from infra.local import topology

    print(topology.add_node(folder))


def kill(name: Annotated[str, typer.Argument(help="Such as worker-1.")], folder: DirOption = DEFAULT) -> None:
    """End a worker."""
    from infra.local import topology

    topology.kill_node(folder, name)
