"""Helpers for the tests of the manifests: read them, build the overlays, and know the fields of KubeRay."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
OVERLAYS = sorted(p.name for p in (INFRA / "kuberay" / "overlays").iterdir())
# Components that no overlay has: where each is tried -> the components of that overlay, in their order.
EXTRAS = {
    "gpu-sweep-kueue": ["gpu", "gpu-sweep", "../sweep", "kueue", "images"],
    "cpu-redis-monitoring": ["redis", "monitoring", "cpu", "images"],
}

# No package ships KubeRay's schemas. These are the fields of its API reference (ray.io/v1), read by hand; those of
# pods and services inside are Kubernetes' own and are checked against its schemas. So is the Prometheus operator's.
CLUSTER = {
    "rayVersion": str, "enableInTreeAutoscaling": bool,
    "authOptions": {"mode": ("token", "disabled")},
    "autoscalerOptions": {"idleTimeoutSeconds": int, "resources": dict, "version": ("v1", "v2"),
                          "upscalingMode": ("Default", "Aggressive", "Conservative"), "env": list, "envFrom": list,
                          "securityContext": dict},
    "gcsFaultToleranceOptions": {"redisAddress": str, "redisUsername": dict, "redisPassword": {"valueFrom": dict},
                                 "externalStorageNamespace": str},
    "headGroupSpec": {"rayStartParams": dict, "template": dict, "serviceType": str, "headService": dict},
    "workerGroupSpecs": [{"groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int,
                          "idleTimeoutSeconds": int, "numOfHosts": int, "rayStartParams": dict, "template": dict}],
}
FIELDS: dict[str, Any] = {
    "RayCluster": CLUSTER,
    "RayJob": {"entrypoint": str, "runtimeEnvYAML": str, "jobId": str, "backoffLimit": int, "metadata": dict,
               "submissionMode": ("K8sJobMode", "HTTPMode", "InteractiveMode"), "activeDeadlineSeconds": int,
               "shutdownAfterJobFinishes": bool, "ttlSecondsAfterFinished": int, "entrypointNumCpus": float,
               "entrypointNumGpus": float, "entrypointResources": str, "suspend": bool, "clusterSelector": dict,
               "rayClusterSpec": CLUSTER, "submitterPodTemplate": dict, "submitterConfig": {"backoffLimit": int}},
    "RayService": {"serveConfigV2": str, "rayClusterConfig": CLUSTER, "excludeHeadPodFromServeSvc": bool,
                   "upgradeStrategy": {"type": ("NewCluster", "None")}, "serveService": dict},
    "PodMonitor": {"selector": {"matchExpressions": [{"key": str, "operator": ("In", "Exists"), "values": list}]},
                   "podMetricsEndpoints": [{"port": str, "interval": str,
                                            "relabelings": [{"sourceLabels": list, "targetLabel": str}]}]},
}
REQUIRED = {"RayCluster": {"headGroupSpec"}, "RayJob": {"entrypoint", "rayClusterSpec"},
            "RayService": {"serveConfigV2", "rayClusterConfig"}, "PodMonitor": {"selector", "podMetricsEndpoints"}}


def documents(text: str) -> list[dict[str, Any]]:
    """The documents of a YAML stream."""
    return [d for d in yaml.safe_load_all(text) if d]


@cache
def build(overlay: str) -> list[dict[str, Any]]:
    """The documents that `kubectl apply -k` would send for an overlay, or for the components of an entry of EXTRAS."""
    if overlay not in EXTRAS:
        return kustomize(INFRA / "kuberay" / "overlays" / overlay)
    with tempfile.TemporaryDirectory() as folder:
        start = os.path.relpath(INFRA / "kuberay", folder)
        base = "cluster" if "sweep" in overlay else "base"
        components = [os.path.normpath(f"{start}/components/{name}") for name in EXTRAS[overlay]]
        Path(folder, "kustomization.yaml").write_text(yaml.safe_dump({
            "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "namespace": "fss",
            "resources": [f"{start}/{base}"], "components": components}))
        return kustomize(Path(folder))


def kustomize(folder: Path) -> list[dict[str, Any]]:
    """The documents that `kubectl apply -k` would send for a folder."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("needs kubectl, whose kustomize builds the overlays")
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return documents(done.stdout)


def unknown_fields(value: Any, known: Any, where: str = "spec") -> Iterator[str]:
    """Paths in `value` that are not in `known` or whose value has another type than `known` says."""
    if isinstance(known, dict) and isinstance(value, dict):
        for key, inner in value.items():
            if key not in known:
                yield f"{where}.{key}: unknown"
            else:
                yield from unknown_fields(inner, known[key], f"{where}.{key}")
    elif isinstance(known, list) and isinstance(value, list):
        for i, inner in enumerate(value):
            yield from unknown_fields(inner, known[0], f"{where}[{i}]")
    elif isinstance(known, tuple):
        if value not in known:
            yield f"{where}: {value!r} is none of {known}"
    elif not isinstance(known, type) or not isinstance(value, known):
        yield f"{where}: {value!r}"


def clusters(found: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The specs of all Ray clusters in a build, including those inside RayJobs and RayServices."""
    for document in found:
        place = {"RayCluster": None, "RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
        if document["kind"] in place:
            inner = place[document["kind"]]
            yield document["spec"][inner] if inner else document["spec"]


def pod_templates(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All pod templates in a document: of Ray clusters, of the pod that submits a RayJob, of Kubernetes' own kinds."""
    for cluster in clusters([document]):
        yield cluster["headGroupSpec"]["template"]
        yield from (group["template"] for group in cluster["workerGroupSpecs"])
    spec = document.get("spec", {})
    inner = spec.get("jobTemplate", {}).get("spec", spec)
    yield from (t for t in (inner.get("template"), spec.get("submitterPodTemplate")) if t)


def in_bytes(text: str) -> float:
    """Bytes of a Kubernetes quantity of memory, such as `16Gi`."""
    units = {"Gi": 2**30, "Mi": 2**20, "G": 1e9, "M": 1e6}
    return next((float(text.removesuffix(u)) * f for u, f in units.items() if text.endswith(u)), 0.0) or float(text)
