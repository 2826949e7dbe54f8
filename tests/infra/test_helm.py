"""The values for KubeRay's chart `ray-cluster` say what the manifests say, with keys that the chart reads.

No package ships the chart. Its keys were read by hand in `templates/raycluster-cluster.yaml`.
"""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.infra.manifests import FIELDS, INFRA, build, clusters, kustomize, unknown_fields
from tests.infra.test_kuberay import check

IMAGE = {"repository": str, "tag": str, "pullPolicy": str}
POD = {"rayStartParams": dict, "podSecurityContext": dict, "securityContext": dict, "containerEnv": list,
       "envFrom": list, "ports": list, "resources": dict, "volumeMounts": list, "volumes": list, "nodeSelector": dict,
       "tolerations": list, "affinity": dict, "image": IMAGE, "labels": dict, "annotations": dict}
GROUP = {**POD, "disabled": bool, "replicas": int, "minReplicas": int, "maxReplicas": int}
CHART = {
    "fullnameOverride": str, "image": IMAGE, "imagePullSecrets": list, "common": {"containerEnv": list},
    "head": {**POD, "rayVersion": str, "enableInTreeAutoscaling": bool,
             "autoscalerOptions": FIELDS["RayCluster"]["autoscalerOptions"], "headService": dict},
    "worker": {**GROUP, "groupName": str}, "additionalWorkerGroups": {"gpu": GROUP},
}
TOKEN = [{"name": "RAY_AUTH_MODE", "value": "token"},
         {"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": {"name": "fss", "key": "auth_token"}}}]


@pytest.fixture(scope="module")
def values() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((INFRA / "kuberay" / "helm" / "values.yaml").read_text())
    return found


def pod(values: dict[str, Any], group: dict[str, Any], name: str) -> dict[str, Any]:
    """The pod that the chart makes of the values of a head or a group."""
    image = group.get("image", values["image"])
    resources = {kind: {k: v for k, v in amounts.items() if v is not None}  # null removes the chart's own value
                 for kind, amounts in group["resources"].items()}
    container = {
        "name": name, "image": f"{image['repository']}:{image['tag']}", "resources": resources,
        "env": values["common"]["containerEnv"] + group["containerEnv"],
        **{key: group[key] for key in ("securityContext", "envFrom", "ports", "volumeMounts")}}
    return {"securityContext": group["podSecurityContext"], "imagePullSecrets": values["imagePullSecrets"],
            "containers": [container], "volumes": group["volumes"],
            **{key: group[key] for key in ("nodeSelector", "tolerations") if key in group}}


def test_the_chart_reads_every_key(values: dict[str, Any]) -> None:
    assert not list(unknown_fields(values, CHART, "values"))
    assert list(unknown_fields({"head": {"rayVersoin": "2"}}, CHART, "values")) == ["values.head.rayVersoin: unknown"]


def test_it_is_the_cluster_of_the_manifests(values: dict[str, Any]) -> None:
    """Fails if one of both is changed alone. The chart has other words for Ray's token, and none for Kubernetes'."""
    (cluster,) = clusters(d for d in build("gpu") if d["kind"] == "RayCluster")
    head, workers = values["head"], [values["worker"], values["additionalWorkerGroups"]["gpu"]]
    assert {k: head[k] for k in ("rayVersion", "enableInTreeAutoscaling")} == {
        k: cluster[k] for k in ("rayVersion", "enableInTreeAutoscaling")}
    assert head["autoscalerOptions"] == {**cluster["autoscalerOptions"], "env": TOKEN}
    pairs = [("ray-head", head, cluster["headGroupSpec"]),
             *(("ray-worker", mine, theirs) for mine, theirs in zip(workers, cluster["workerGroupSpecs"], strict=True))]
    for name, mine, theirs in pairs:
        made, known = pod(values, mine, name), theirs["template"]["spec"]
        check({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": made})
        assert made["containers"][0].pop("env") == TOKEN
        assert made == {k: v for k, v in known.items() if k != "automountServiceAccountToken"}
        assert mine["rayStartParams"] == theirs["rayStartParams"]
        assert {k: mine.get(k) for k in ("minReplicas", "maxReplicas")} == {
            k: theirs.get(k) for k in ("minReplicas", "maxReplicas")}
    names = [values["worker"]["groupName"], *values["additionalWorkerGroups"]]
    assert names == [g["groupName"] for g in cluster["workerGroupSpecs"]]
    assert values["fullnameOverride"] == "fss"


def test_what_stands_beside_it_is_that_of_the_manifests() -> None:
    beside, whole = kustomize(INFRA / "kuberay" / "helm"), build("gpu")
    assert beside == [d for d in whole if d["kind"] != "RayCluster"]
    assert {"ConfigMap", "NetworkPolicy", "Deployment", "CronJob"} <= {d["kind"] for d in beside}
