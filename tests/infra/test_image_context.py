"""What `docker build` sends: neither builder sees a secret, and of the weights only those that ship with fss."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.infra.manifests import INFRA, ROOT

IGNORED = (".dockerignore", "infra/image/Dockerfile.dockerignore")  # of the legacy builder, of BuildKit
SENT = ("constraints.txt", "pyproject.toml", "README.md", "jobs/cli.py", "pipelines/base/storage.py",
        "infra/compose/compose.yaml", "fss_models/shipped/nano.safetensors", "fss_models/shipped/champion/bundle.json")
KEPT_BACK = ("infra/compose/secrets/ray_token", "infra/compose/secrets/service.env", "infra/compose/secrets/s3.env",
             "infra/compose/.env", "out/champion/model.safetensors", "fss_models/mine.safetensors", "jobs/weights.pt",
             "jobs/__pycache__/cli.pyc", "fss.egg-info/PKG-INFO", "build/lib/jobs/cli.py", ".git/config", ".env")


def sent_by(patterns: list[str], name: str) -> bool:
    """Whether a builder sends a file: the last pattern that matches it or a folder of it decides."""
    parts, ignored = name.split("/"), False
    places = ["/".join(parts[:i]) for i in range(1, len(parts) + 1)]
    for pattern in patterns:
        plain = re.escape(pattern.removeprefix("!")).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
        if any(re.fullmatch(plain, place) for place in places):
            ignored = not pattern.startswith("!")
    return not ignored


def test_both_builders_read_the_same_patterns() -> None:
    legacy, buildkit = ((ROOT / name).read_text() for name in IGNORED)
    assert legacy == buildkit
    patterns = [line for line in legacy.splitlines() if line and not line.startswith("#")]
    assert [name for name in SENT if not sent_by(patterns, name)] == []
    assert [name for name in KEPT_BACK if sent_by(patterns, name)] == []


def docker(*args: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["docker", *args], capture_output=True, check=False, timeout=240, env={**os.environ, **env})


@pytest.mark.parametrize("buildkit", ["0", "1"])
def test_no_secret_is_in_the_context_of_a_real_build(buildkit: str, tmp_path: Path) -> None:
    """Would catch secrets in the image: the legacy builder does not read Dockerfile.dockerignore."""
    if shutil.which("docker") is None or docker("info").returncode:
        pytest.skip("needs a running Docker daemon")
    for name in (*SENT, *KEPT_BACK):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "infra/image").mkdir()
    for name in IGNORED:
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "infra/image/Dockerfile").write_text("FROM scratch\nCOPY . /context\nCMD [\"none\"]\n")
    tag = f"fss-context-test:{buildkit}"
    done = docker("build", "-f", str(tmp_path / "infra/image/Dockerfile"), "-t", tag, str(tmp_path),
                  DOCKER_BUILDKIT=buildkit)
    if b"buildx component is missing" in done.stderr:
        pytest.skip("this Docker has no BuildKit")
    assert done.returncode == 0, done.stderr.decode()
    made = docker("create", tag).stdout.decode().strip()
    try:
        listed = subprocess.run(["tar", "-t"], input=docker("export", made).stdout, capture_output=True, check=True)
    finally:
        docker("rm", made)
        docker("rmi", tag)
    files = {n.removeprefix("context/") for n in listed.stdout.decode().split() if n.startswith("context/")}
    assert set(SENT) <= files
    assert not files & set(KEPT_BACK)


def test_the_secrets_of_the_script_are_the_ones_that_are_tested() -> None:
    script = (INFRA / "compose" / "make_secrets.sh").read_text()
    assert all(Path(name).name in script for name in KEPT_BACK if "/secrets/" in name)
