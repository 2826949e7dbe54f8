"""What a platform asks of the manifests (PodSecurity, images, limits), and what KubeRay's operator does with them."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
import yaml

from tests.infra.manifests import EXTRAS, INFRA, OVERLAYS, ROOT, build, clusters, documents, pod_templates

BUILDS = [*OVERLAYS, *EXTRAS]


def pods(overlay: str) -> list[dict[str, Any]]:
    """The spec of every pod that an overlay leads to, but for containers that the operator adds."""
    return [template["spec"] for document in build(overlay) for template in pod_templates(document)]


def named(overlay: str, kind: str, name: str = "") -> dict[str, Any]:
    found = [d for d in build(overlay) if d["kind"] == kind and name in (d["metadata"]["name"], "")]
    assert len(found) == 1, (overlay, kind, name)
    return found[0]


@pytest.mark.parametrize("overlay", BUILDS)
def test_pods_fit_the_restricted_level(overlay: str) -> None:
    """As Kubernetes' PodSecurity `restricted` asks: a namespace with that label would refuse other pods."""
    for pod in pods(overlay):
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        confined = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        for container in (*pod["containers"], *pod.get("initContainers", [])):
            assert container["securityContext"] == confined
            assert not any("hostPort" in port for port in container.get("ports", []))
        kinds = {kind for volume in pod.get("volumes", []) for kind in volume if kind != "name"}
        assert kinds <= {"emptyDir", "secret", "configMap", "persistentVolumeClaim"}


@pytest.mark.parametrize("overlay", BUILDS)
def test_containers_that_the_operator_adds_are_confined_too(overlay: str) -> None:
    """The autoscaler takes its context from autoscalerOptions; a RayJob's own submitter would have none."""
    for cluster in clusters(build(overlay)):
        assert cluster["enableInTreeAutoscaling"] == ("autoscalerOptions" in cluster)
        if "autoscalerOptions" in cluster:
            assert cluster["autoscalerOptions"]["securityContext"]["allowPrivilegeEscalation"] is False
    for document in build(overlay):
        if document["kind"] == "RayJob":
            submitter = document["spec"]["submitterPodTemplate"]["spec"]
            assert submitter["restartPolicy"] == "Never"
            assert "command" not in submitter["containers"][0], "the operator's command submits and follows"


@pytest.mark.parametrize("overlay", BUILDS)
def test_only_a_head_with_an_autoscaler_has_a_token_of_kubernetes(overlay: str) -> None:
    heads = [c["headGroupSpec"]["template"]["spec"] for c in clusters(build(overlay)) if c["enableInTreeAutoscaling"]]
    for pod in pods(overlay):
        assert pod.get("automountServiceAccountToken", True) == any(pod is head for head in heads)


@pytest.mark.parametrize("overlay", BUILDS)
def test_images_have_a_version_and_disks_a_limit(overlay: str) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for pod in pods(overlay):
        for container in pod["containers"]:
            image = container["image"]
            if image.startswith("redis:"):
                assert re.fullmatch(r"redis:\d+\.\d+\.\d+-\w+", image)
            else:
                assert image in (f"registry.example/fss:{version}-cpu", f"registry.example/fss:{version}-gpu")
                assert pod["imagePullSecrets"] == [{"name": "fss-registry"}]
            for kind in ("requests", "limits"):
                assert "ephemeral-storage" in container["resources"][kind], container["name"]


@pytest.mark.parametrize("overlay", BUILDS)
def test_the_operator_finds_the_port_of_serve(overlay: str) -> None:
    """BuildServeService makes no Service for a RayService whose head names no port `serve`."""
    config = yaml.safe_load((INFRA / "kuberay/champion/serve.yaml").read_text())
    for cluster in clusters(build(overlay)):
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            ports = {p["name"]: p["containerPort"] for p in group["template"]["spec"]["containers"][0]["ports"]}
            assert ports["serve"] == config["http_options"]["port"] == 8000


@pytest.mark.parametrize("overlay", BUILDS)
def test_what_the_operator_refuses_is_not_there(overlay: str) -> None:
    """The rules of its validation that a manifest can break: names, Redis set twice, groups suspended by hand."""
    for document in build(overlay):
        if document["apiVersion"] == "ray.io/v1":
            assert re.fullmatch(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", document["metadata"]["name"])
        if document["kind"] == "RayJob":
            assert document["spec"]["activeDeadlineSeconds"] > 0
            assert document["spec"]["shutdownAfterJobFinishes"] or not document["spec"].get("suspend")
    for cluster in clusters(build(overlay)):
        assert not any(key.startswith("redis") for key in cluster["headGroupSpec"]["rayStartParams"])
        env = cluster["headGroupSpec"]["template"]["spec"]["containers"][0].get("env", [])
        assert not {e["name"] for e in env} & {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME"}
        for group in cluster["workerGroupSpecs"]:
            assert "suspend" not in group
            assert 0 <= group["minReplicas"] <= group.get("replicas", group["minReplicas"]) <= group["maxReplicas"]


@pytest.mark.parametrize("overlay", ["cpu-sweep", "gpu-sweep", "gpu-sweep-kueue"])
def test_a_sweep_has_all_its_machines_when_it_begins(overlay: str) -> None:
    """Kueue admits whole clusters only: machines that an autoscaler added later would go around its quota."""
    spec = named(overlay, "RayJob")["spec"]
    cluster = spec["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is False
    assert all(group["replicas"] == group["minReplicas"] > 0 for group in cluster["workerGroupSpecs"])
    if overlay.endswith("kueue"):
        assert named(overlay, "RayJob")["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
        assert spec["suspend"] is True
        classes = documents((INFRA / "kuberay/components/kueue/priority.yaml").read_text())
        assert {pod.get("priorityClassName") for pod in pods(overlay) if "volumes" in pod} == {
            classes[0]["metadata"]["name"]}


def test_replicas_on_gpus_have_the_token_of_the_service() -> None:
    for overlay in ("cpu-champion", "gpu-champion"):
        for cluster in clusters(build(overlay)):
            for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
                sources = group["template"]["spec"]["containers"][0]["envFrom"]
                assert {"secretRef": {"name": "fss-service"}} in sources


def test_the_operator_reaches_the_heads_wherever_it_is_installed() -> None:
    """It is found by the label that Helm's chart and the plain manifests give it, in any namespace."""
    rules = named("cpu", "NetworkPolicy")["spec"]["ingress"]
    operator = [r for r in rules if any({"namespaceSelector", "podSelector"} <= set(f) for f in r.get("from", []))]
    assert [rule["from"] for rule in operator] == [[{
        "namespaceSelector": {}, "podSelector": {"matchLabels": {"app.kubernetes.io/component": "kuberay-operator"}}}]]
    assert {8265, 8000} <= {p["port"] for p in operator[0]["ports"]}
    assert not any(rule.get("from") == [{"namespaceSelector": {}}] for rule in rules), "open to every pod"


def test_servers_are_probed() -> None:
    found = [pod for pod in pods("cpu") if pod["containers"][0]["name"] in ("mlflow", "s3")]
    assert len(found) == 2
    for pod in found:
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert pod["containers"][0][probe]["httpGet"]["path"] in ("/health", "/healthz")


def test_mlflow_runs_no_jobs_of_its_own() -> None:
    """Its job runner is on by default and takes more memory than the server."""
    from mlflow import environment_variables

    from infra.local.mlflow_server import QUIET

    name = "MLFLOW_SERVER_ENABLE_JOB_EXECUTION"
    assert getattr(environment_variables, name).name == name
    server = named("cpu", "Deployment", "mlflow")["spec"]["template"]["spec"]["containers"][0]
    compose = yaml.safe_load((INFRA / "compose" / "compose.yaml").read_text())["services"]["mlflow"]["environment"]
    assert {e["name"]: e["value"] for e in server["env"]}[name] == compose[name] == QUIET[name] == "false"
    assert compose["AWS_ENDPOINT_URL"], "what all services share is still there"


def test_the_nightly_job_waits_to_be_switched_on() -> None:
    job = named("cpu", "CronJob")["spec"]
    assert job["suspend"] is True
    assert 0 < job["jobTemplate"]["spec"]["activeDeadlineSeconds"] < 24 * 3600


def test_heads_are_not_drained_away() -> None:
    found = named("gpu", "PodDisruptionBudget")["spec"]
    assert found == {"minAvailable": 1, "selector": {"matchLabels": {
        "ray.io/cluster": named("gpu", "RayCluster")["metadata"]["name"], "ray.io/node-type": "head"}}}
    assert named("gpu-champion", "PodDisruptionBudget")["spec"]["selector"] == {"matchLabels": {"ray.io/serve": "true"}}


def test_the_monitor_scrapes_the_port_that_the_pods_name() -> None:
    endpoint = named("cpu-redis-monitoring", "PodMonitor")["spec"]["podMetricsEndpoints"][0]
    for cluster in clusters(build("cpu-redis-monitoring")):
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            names = [p["name"] for p in group["template"]["spec"]["containers"][0]["ports"]]
            assert endpoint["port"] in names


def test_ray_keeps_its_state_in_redis() -> None:
    options = next(clusters(build("cpu-redis-monitoring")))["gcsFaultToleranceOptions"]
    service = named("cpu-redis-monitoring", "Service", "redis")
    assert options["redisAddress"] == f"redis:{service['spec']['ports'][0]['port']}"
    server = named("cpu-redis-monitoring", "StatefulSet", "redis")["spec"]["template"]["spec"]["containers"][0]
    assert options["redisPassword"]["valueFrom"] == server["env"][0]["valueFrom"]
    assert service["spec"]["selector"] == {"app": "redis"}
