"""The cluster files of `ray up` and the Slurm script, on two machines that are namespaces of this one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.local.ray_nodes import AGENT_WAIT_S

ROOT = Path(__file__).parents[2]
MACHINES = Path(__file__).with_name("machines.sh")
SLURM = ROOT / "infra/slurm/fss.sbatch"
NAMESPACES = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
PATHS = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"])
OURS = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
WHERE = """
import socket, time, ray
ray.init(address="auto", log_to_driver=False)
while len(alive := [n for n in ray.nodes() if n["Alive"]]) < 2: time.sleep(1)
on = ray.remote(num_cpus=0)(lambda: ray.util.get_node_ip_address())
where = [on.options(label_selector={"ray.io/node-id": node["NodeID"]}).remote() for node in alive]
print("machines:", *sorted(ray.get(where)))
"""
STEPS = """
export TMPDIR=$HOME
ray up -y {file} --no-config-cache
ray submit {file} where.py
ray dashboard {file} </dev/null >dashboard.log 2>&1 &
until curl -s -o /dev/null http://127.0.0.1:8265; do sleep 1; done
RAY_AUTH_MODE=token RAY_AUTH_TOKEN=test fss submit --working-dir '' doctor
ray down -y {file}
while pgrep -x raylet; do sleep 1; done  # `ray down` stops the head; a worker ends once it has missed it
"""
SRUN = """#!/bin/bash
# In place of Slurm's: the command on both machines; fails if it fails on one.
while [[ $1 == -* ]]; do shift; done
for pid in {folder}/[12]/pid; do nsenter --mount --net --pid -t "$(cat "$pid")" -- "$@" & started+=($!); done
for one in "${{started[@]}}"; do wait "$one" || failed=$?; done
exit "${{failed:-0}}"
"""


def config(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "infra/ray-up" / name).read_text())
    return found


@pytest.mark.parametrize("name", ["aws.yaml", "onprem.yaml"])
def test_a_cluster_file_fits_rays_schema(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(config(name)))


def on_machines(folder: Path, command: list[str], **env: str) -> str:
    """What `command` printed that ran beside two machines; it has to succeed. Skips where there are no namespaces."""
    if subprocess.run([*NAMESPACES, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to make namespaces (unshare)")
    done = subprocess.run([*NAMESPACES, "bash", str(MACHINES), str(folder / "m"), "2", *command], cwd=folder, text=True,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
                          timeout=600, env={**OURS, "PATH": PATHS, **env})
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


@pytest.mark.slow
def test_two_machines_over_ssh(tmp_path: Path) -> None:
    """The on-premise file, with addresses, user and key; the installed environment is in place of a new one."""
    if missing := [program for program in ("sshd", "ssh", "rsync") if shutil.which(program, path=PATHS) is None]:
        pytest.skip(f"needs {', '.join(missing)}")
    file = config("onprem.yaml")
    file["provider"] |= {"head_ip": "10.77.0.1", "worker_ips": ["10.77.0.2"]}
    file["auth"] = {"ssh_user": "root", "ssh_private_key": str(tmp_path / "m/key")}
    file["file_mounts"]["~/fss"] = str(ROOT)
    file["setup_commands"] = ["test -f ~/fss/pyproject.toml", *file["setup_commands"][1:]]
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(file))
    (tmp_path / "where.py").write_text(WHERE)
    for machine in "012":
        home = tmp_path / "m" / machine / "home"
        (home / "fss").mkdir(parents=True)
        (home / "fss/.venv").symlink_to(sys.prefix)
        (home / ".bashrc").write_text(f'export PATH="$PATH:{PATHS}"\n')
    (tmp_path / "m/0/home/fss.env").write_text(
        f"RAY_AUTH_MODE=token\nRAY_AUTH_TOKEN=test\nRAY_agent_register_timeout_ms={AGENT_WAIT_S * 1000}\n")
    said = on_machines(tmp_path, ["bash", "-euc", STEPS.format(file="cluster.yaml")])
    assert "machines: 10.77.0.1 10.77.0.2" in said
    assert "this machine is ready" in said


def test_the_slurm_script_wants_a_command() -> None:
    done = subprocess.run(["bash", str(SLURM)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no command")


@pytest.mark.slow
def test_the_slurm_script_on_two_machines(tmp_path: Path) -> None:
    """With an `srun` of our own: there is no Slurm here."""
    (tmp_path / "bin").mkdir()
    srun = tmp_path / "bin/srun"
    srun.write_text(SRUN.format(folder=tmp_path / "m"))
    srun.chmod(0o755)
    first = f'nsenter --net -t "$(cat {tmp_path}/m/1/pid)" -- bash {SLURM} doctor --json'
    job = str(os.getpid())
    try:
        said = on_machines(tmp_path, ["bash", "-euc", first], PATH=f"{tmp_path}/bin:{PATHS}", FSS_VENV=sys.prefix,
                           SLURM_JOB_ID=job, SLURM_JOB_NUM_NODES="2", SLURM_CPUS_ON_NODE="1")
    finally:
        shutil.rmtree(f"/tmp/fss-{job}", ignore_errors=True)
    assert "On head node" in said
    assert "On worker node" in said
    assert "(cluster)" in said, said[-3000:]  # which starts once both nodes have joined
