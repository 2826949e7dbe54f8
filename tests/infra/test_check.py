"""`infra/check.sh`, as far as it goes without a container engine: its messages, its commands, what it compares."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.parse import check_output, parse_command
from pipelines.base.storage import Store
from tests.infra.manifests import INFRA

SCRIPT = INFRA / "check.sh"
HERE = f'python_() {{ "{sys.executable}" - "$@"; }}'  # in place of Python in a container


def sourced(body: str) -> subprocess.CompletedProcess[str]:
    """Run lines of bash with the functions of the script."""
    return subprocess.run(["bash", "-c", f'source "{SCRIPT}"\n{body}'], capture_output=True, text=True, check=False,
                          timeout=120, env={**os.environ, "PYTHONPATH": str(INFRA.parent)})


def started(*args: str, **env: str) -> tuple[int, str]:
    done = subprocess.run([shutil.which("bash") or "bash", str(SCRIPT), *args], capture_output=True, text=True,
                          check=False, timeout=60, env={**os.environ, **env})
    return done.returncode, done.stderr


def test_one_line_says_what_is_missing(tmp_path: Path) -> None:
    for tool in ("dirname", "grep", "sed", "awk"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or tool)
    assert started("--quick") == (2, "error: unknown option --quick (see --help)\n")
    assert started(PATH=str(tmp_path)) == (1, "error: docker is not installed\n")
    (tmp_path / "docker").symlink_to(shutil.which("false") or "false")
    assert started(PATH=str(tmp_path)) == (1, "error: the Docker daemon does not answer (docker info)\n")


def test_a_step_that_fails_ends_the_script_with_its_last_line(tmp_path: Path) -> None:
    """Would catch a function whose first command fails and which goes on, as bash does in conditions."""
    done = sourced(f"folder={tmp_path} log={tmp_path}/check.log image=none\ntrap at_exit EXIT\n"
                   "bad() { echo 'the reason'; false; echo 'went on'; }\nrun 'a bad step' bad\necho 'after it'")
    assert done.returncode == 1
    assert done.stderr == f"error: a bad step: the reason (log: {tmp_path}/check.log)\n"
    assert "went on" not in (tmp_path / "check.log").read_text() + done.stdout
    assert "after it" not in done.stdout


def test_fss_knows_every_command_of_the_script() -> None:
    print_words = """-c 'import json, sys; print("CLIENT", json.dumps(sys.argv[1:]))' "$@\""""
    done = sourced(f"client() {{ {sys.executable} {print_words}; }}" + """
        wait_for_files() { :; }; lose() { :; }; up() { :; }; containers() { :; }; compose() { :; }
        start_client; sweep_with_a_lost_worker; label_with_a_lost_worker; lose_the_head
        label id s3://fss/labels --engine actors; label id s3://fss/labels --service http://ray-head:8000
        bundle() { echo one; }; serves_another() { :; }
        new_champion
        """)
    assert done.returncode == 0, done.stderr
    commands = [json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("CLIENT")]
    assert len(commands) == 9
    for command in commands:
        assert command[0] == "fss"
        parsed = parse_command(command[1:])
        if parsed.path == "submit":
            check_output(parse_command(parsed.values["command"]))


def test_results_and_parts_are_compared(tmp_path: Path) -> None:
    for place in ("a", "b"):
        store = Store(str(tmp_path / place))
        store.write_json("runs/one/result.json", {"bundle_id": "x", "miou": 0.5, "list_hash": "y"})
        for part in range(3):
            store.write_bytes(f"parts/{part}.parquet", b"bytes")
    both = f"{tmp_path}/a {tmp_path}/b"
    assert sourced(f"{HERE}\nsame_results {both}").stdout == "1\n"
    assert sourced(f"{HERE}\nsame_parts {both}").stdout == "3\n"
    assert sourced(f"{HERE}\nwait_s=1\nwait_for_files {tmp_path}/a .parquet 3").returncode == 0
    assert float(sourced(f"{HERE}\nrate {tmp_path}/a").stdout) > 0
    store.write_bytes("parts/1.parquet", b"other")
    store.write_json("runs/one/result.json", {"bundle_id": "x", "miou": 0.4, "list_hash": "y"})
    assert "results differ" in sourced(f"{HERE}\nsame_results {both}").stderr
    done = sourced(f"{HERE}\nsame_parts {both}")
    assert (done.returncode, done.stderr) == (1, "1 of 3 parts differ, the first is parts/1.parquet\n")
    done = sourced(f"{HERE}\nwait_s=1\nwait_for_files {tmp_path}/a .parquet 4")
    assert (done.returncode, done.stderr) == (1, f"not in 1 s: 4 files '.parquet' in {tmp_path}/a\n")
    assert sourced(f"{HERE}\nsame_parts {tmp_path}/none {tmp_path}/none").returncode == 1


def test_memory_of_a_service_is_its_largest_container(tmp_path: Path) -> None:
    (tmp_path / "memory.txt").write_text("fss-check_ray-worker_1 512MiB / 8GiB\nfss-check_ray-worker_2 1.5GiB / 8GiB\n"
                                         "fss-check_s3_1 2GiB / 2GiB\nfss-check_ray-worker_1 640MiB / 8GiB\n")
    assert sourced(f"folder={tmp_path}\npeak ray-worker").stdout == "1.50 GiB"


def test_a_linter_of_shells_finds_nothing() -> None:
    tool = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if tool is None:
        pytest.skip("needs shellcheck")
    done = subprocess.run([tool, str(SCRIPT), str(INFRA / "compose" / "make_secrets.sh")], capture_output=True,
                          text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout
