"""The `fss` command: its commands and options are frozen, and mistakes end with exit status 2 and one line.

After an intended change `python -m tests.jobs.test_cli` writes cli_surface.json again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from fss_models.errors import FssError
from jobs.cli import main, make_app
from tests.fixtures.command import Fss

FROZEN = Path(__file__).with_name("cli_surface.json")
FSS = [sys.executable, "-m", "jobs.cli"]


def surface() -> dict[str, list[str]]:
    """Sub-command -> its arguments and flags, sorted."""
    found: dict[str, list[str]] = {}

    def walk(command: Any, path: str) -> None:
        children = getattr(command, "commands", None)
        if children is not None:
            for name, child in children.items():
                walk(child, f"{path} {name}".strip())
            return
        found[path] = sorted(flag for p in command.params for flag in (*p.opts, *p.secondary_opts) if flag != "--help")

    walk(typer.main.get_command(make_app()), "")
    return dict(sorted(found.items()))


def run(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*FSS, *args], cwd=cwd, capture_output=True, text=True, check=False, timeout=120)


def assert_one_line(done: subprocess.CompletedProcess[str], line: str) -> None:
    """Check that a command told a mistake that has `line` in it, and nothing else."""
    assert done.returncode == 2, done.stderr[-1500:]
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert line in done.stderr
    assert done.stdout == ""


def test_the_surface_is_frozen() -> None:
    assert surface() == json.loads(FROZEN.read_text()), "if this change is intended, run: python -m tests.jobs.test_cli"


@pytest.mark.parametrize("command", sorted(json.loads(FROZEN.read_text()) if FROZEN.exists() else []))
def test_every_command_has_a_help_page(command: str) -> None:
    from typer.testing import CliRunner

    answer = CliRunner().invoke(make_app(), [*command.split(), "--help"])
    assert answer.exit_code == 0
    assert "Usage" in answer.output


@pytest.mark.parametrize(("args", "line"), [
    (("shards", "build", "--recipe", "demmo"), "no recipe 'demmo'"),
    (("demo", "--data", "no/such/folder"), "no/such/folder"),
    (("report", "--out", "nowhere"), "nowhere"),
    (("sweep", "status", "--out", "nowhere"), "no sweep was run here"),
    (("sweep", "resume", "--out", "nowhere"), "no sweep was run here"),
    (("sweep", "cancel", "--out", "nowhere"), "no sweep is under way here"),
    (("report", "--out", "ftp://bucket"), "unsupported URL"),
])
def test_mistakes_end_with_status_2_and_one_line(args: tuple[str, ...], line: str, fss: Fss, tmp_path: Path) -> None:
    assert_one_line(fss(*args, cwd=tmp_path), line)
    assert list(tmp_path.iterdir()) == []  # a mistake leaves nothing behind


@pytest.mark.parametrize(("args", "line"), [
    (("shards", "build", "--set", "data.fodls=3"), "did you mean 'data.folds'"),
    (("sweep", "run", "--set", "methods.0.name=nobody"), "nobody"),
])
def test_a_process_of_its_own_shows_nothing_else(args: tuple[str, ...], line: str, tmp_path: Path) -> None:
    """Would catch warnings of the libraries: one mistake comes before they are imported, one after."""
    assert_one_line(run(*args, cwd=tmp_path), line)
    assert list(tmp_path.iterdir()) == []


def test_an_error_raised_in_a_replica_is_printed_as_one_line(monkeypatch: pytest.MonkeyPatch,
                                                             capsys: pytest.CaptureFixture[str]) -> None:
    from ray.exceptions import RayTaskError

    def app() -> None:
        cause = FssError("holds another bundle", where="here")
        raise RayTaskError("chunk", "Traceback\nof many lines", cause).as_instanceof_cause()

    monkeypatch.setattr("jobs.cli.make_app", lambda: app)
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code, capsys.readouterr().err) == (2, "error: here: holds another bundle\n")


if __name__ == "__main__":
    FROZEN.write_text(json.dumps(surface(), indent=1) + "\n")
