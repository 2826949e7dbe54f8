"""The KubeRay manifests: they build, all their fields exist, and the commands they name exist in the code."""

from __future__ import annotations

import importlib
import shlex
from typing import Any

import pytest
import yaml

from jobs.parse import check_output, parse_command
from tests.infra.manifests import (
    EXTRAS,
    FIELDS,
    INFRA,
    OVERLAYS,
    REQUIRED,
    ROOT,
    build,
    clusters,
    documents,
    in_bytes,
    pod_templates,
    unknown_fields,
)

KUBERNETES = "1.34"
BUILDS = [*OVERLAYS, *EXTRAS]


def check(document: dict[str, Any]) -> None:
    """Validate a document against the schemas of Kubernetes; unknown fields are errors."""
    validator = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    validator.validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize("overlay", BUILDS)
def test_kubernetes_knows_every_field(overlay: str) -> None:
    found = build(overlay)
    assert found
    for document in found:
        assert document["metadata"]["namespace"] == "fss"
        if document["kind"] not in FIELDS:
            check(document)
        for template in pod_templates(document):
            check({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, **template})


def test_the_check_itself_finds_a_wrong_field() -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"},
           "spec": {"containers": [{"name": "a", "image": "b", "memory": "1Gi"}]}}
    with pytest.raises(Exception, match="memory"):
        check(pod)
    assert list(unknown_fields({"authOptions": {"mode": "tokens"}, "rayVersoin": "2"}, FIELDS["RayCluster"])) == [
        "spec.authOptions.mode: 'tokens' is none of ('token', 'disabled')", "spec.rayVersoin: unknown"]


@pytest.mark.parametrize("overlay", BUILDS)
def test_kuberay_knows_every_field(overlay: str) -> None:
    for document in build(overlay):
        if document["kind"] in FIELDS:
            assert set(document["spec"]) >= REQUIRED[document["kind"]]
            assert not list(unknown_fields(document["spec"], FIELDS[document["kind"]]))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_clusters_ask_for_tokens_and_bound_their_memory(overlay: str) -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    for cluster in clusters(build(overlay)):
        assert cluster["authOptions"] == {"mode": "token"}
        assert cluster["rayVersion"] == pins["ray"]
        groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
        assert ("gpu" in overlay) == any(g.get("groupName") == "gpu" for g in groups)
        for group in groups:
            spec = group["template"]["spec"]
            container, shm = spec["containers"][0], spec["volumes"][0]["emptyDir"]
            memory = in_bytes(container["resources"]["limits"]["memory"])
            store = float(group["rayStartParams"]["object-store-memory"])
            assert store < in_bytes(shm["sizeLimit"]) < memory
            assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]
            on_gpu = "nvidia.com/gpu" in container["resources"]["limits"]
            assert container["image"].endswith("-gpu" if on_gpu else "-cpu"), "CUDA is only where GPUs are"
            assert on_gpu == (group.get("groupName") == "gpu")
            assert all(isinstance(v, str) for v in group["rayStartParams"].values())


def test_nothing_secret_is_in_a_manifest() -> None:
    for path in (INFRA / "kuberay").rglob("*.yaml"):
        for document in documents(path.read_text()):
            assert document.get("kind") != "Secret"


def test_the_sweep_is_a_command_of_fss() -> None:
    job = yaml.safe_load((INFRA / "kuberay/sweep/sweep.yaml").read_text())
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "jobs.cli"]
    check_output(parse_command(words[3:]))


def test_the_nightly_job_is_a_command_of_fss() -> None:
    job = yaml.safe_load((INFRA / "kuberay/base/nightly.yaml").read_text())
    container = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
    words = shlex.split(container["args"][0].replace("$DAY", "2026-01-31"))
    parsed = parse_command(words[words.index("fss") + 1:])
    assert parsed.path == "submit"
    check_output(parse_command(parsed.values["command"]))
    cluster = yaml.safe_load((INFRA / "kuberay/cluster/cluster.yaml").read_text())["metadata"]["name"]
    assert parsed.values["address"] == f"http://{cluster}-head-svc:8265"
    assert container["env"][0]["valueFrom"]["secretKeyRef"] == {"name": cluster, "key": "auth_token"}


def test_the_service_is_an_application_of_the_code() -> None:
    config = yaml.safe_load((INFRA / "kuberay/champion/serve.yaml").read_text())
    from ray.serve.schema import ServeDeploySchema

    from pipelines.console.deployed import ChampionArgs

    schema = ServeDeploySchema.model_validate(config)
    for app in schema.applications:
        module, _, name = app.import_path.partition(":")
        assert callable(getattr(importlib.import_module(module), name))
        ChampionArgs.model_validate(app.args)
    service = next(d for d in build("cpu-champion") if d["kind"] == "RayService")
    assert yaml.safe_load(service["spec"]["serveConfigV2"]) == config
