"""Helpers for the tests of the manifests: read them, build the overlays, and know the fields of KubeRay."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
OVERLAYS = sorted(p.name for p in (INFRA / "kuberay" / "overlays").iterdir())

# No package ships KubeRay's schemas. These are the fields of its API reference (ray.io/v1), read by hand; those of
# pods and services inside are Kubernetes' own and are checked against its schemas.
CLUSTER = {
    "rayVersion": str, "enableInTreeAutoscaling": bool,
    "authOptions": {"mode": ("token", "disabled")},
    "autoscalerOptions": {"idleTimeoutSeconds": int, "resources": dict, "version": ("v1", "v2"),
                          "upscalingMode": ("Default", "Aggressive", "Conservative"), "env": list, "envFrom": list},
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
}
REQUIRED = {"RayCluster": {"headGroupSpec"}, "RayJob": {"entrypoint", "rayClusterSpec"},
            "RayService": {"serveConfigV2", "rayClusterConfig"}}


def documents(text: str) -> list[dict[str, Any]]:
    """The documents of a YAML stream."""
    return [d for d in yaml.safe_load_all(text) if d]


def build(overlay: str) -> list[dict[str, Any]]:
    """The documents that `kubectl apply -k` would send for an overlay."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("needs kubectl, whose kustomize builds the overlays")
    done = subprocess.run([kubectl, "kustomize", str(INFRA / "kuberay" / "overlays" / overlay)], capture_output=True,
                          text=True, check=False, timeout=120)
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
    """Pod templates of the Ray clusters in a document."""
    for cluster in clusters([document]):
        yield cluster["headGroupSpec"]["template"]
        yield from (group["template"] for group in cluster["workerGroupSpecs"])


def in_bytes(text: str) -> float:
    """Bytes of a Kubernetes quantity of memory, such as `16Gi`."""
    units = {"Gi": 2**30, "Mi": 2**20, "G": 1e9, "M": 1e6}
    return next((float(text.removesuffix(u)) * f for u, f in units.items() if text.endswith(u)), 0.0) or float(text)
