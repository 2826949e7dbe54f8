"""`fss submit` before anything is sent: the command is parsed, and its results must not lie in the working folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from fss_models.errors import FssError
from jobs.parse import check_output, parse_command
from tests.jobs.test_cli import run


@pytest.mark.parametrize(("command", "path", "output"), [
    (["sweep", "run", "--out", "s3://b/p"], "sweep run", "s3://b/p"),
    (["sweep", "run"], "sweep run", "out"),  # the recipe's
    (["train", "-r", "debug", "--set", "out=s3://b/q"], "train", "s3://b/q"),
    (["pretrain", "--recipe", "nano_pretrain", "--out", "/shared/p"], "pretrain", "/shared/p"),
    (["doctor"], "doctor", None),
    (["bundles", "list"], "bundles list", None),
])
def test_commands_and_where_they_write(command: list[str], path: str, output: str | None) -> None:
    parsed = parse_command(command)
    assert (parsed.path, parsed.output) == (path, output)


@pytest.mark.parametrize(("command", "line"), [
    (["swep"], "No such command 'swep'"),
    (["--verbose"], "Missing command"),
    (["sweep", "run", "--bogus"], "No such option"),
    (["label", "--images", "s3://b/p"], "Missing option"),
    (["train", "--fold", "two"], "valid integer"),
])
def test_mistakes_are_found_here(command: list[str], line: str) -> None:
    with pytest.raises(FssError, match=line):
        parse_command(command)


def test_results_must_outlive_the_submission() -> None:
    with pytest.raises(FssError, match="are deleted when the submitted command ends"):
        check_output(parse_command(["sweep", "run"]))
    check_output(parse_command(["sweep", "run", "--out", "/shared/run"]))
    check_output(parse_command(["bundles", "list"]))


@pytest.mark.parametrize(("args", "line"), [
    (("submit", "--address", "127.0.0.1:9", "sweep", "run", "--out", "s3://b/p"), "cannot be reached"),
    (("submit", "submit", "doctor"), "runs on this machine only"),
    (("submit", "sweep", "run", "--recipe", "demmo"), "no recipe 'demmo'"),
    (("jobs", "logs", "x", "--address", "ftp://a"), "is not the address of a Ray dashboard"),
    (("local", "kill", "worker-9", "--dir", "nowhere"), "no cluster runs here"),
])
def test_one_clear_line(args: tuple[str, ...], line: str, tmp_path: Path) -> None:
    done = run(*args, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith("error: ")
    assert line in done.stderr
    assert list(tmp_path.iterdir()) == []
