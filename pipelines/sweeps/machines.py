"""The machines of a Ray cluster, and the request to Ray's autoscaler for those that a sweep lacks.

Ray keeps one such request a cluster. Its own actor, the coordinator of Ray Data and Ray Train, adds up what all ask
for, and forgets who has not asked again for a minute, because it was killed.
"""

from __future__ import annotations

import importlib
import json
import math
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from pipelines.sweeps.schedule import Machine, QueuedRun

LASTS_S = 60.0  # seconds after which a request is dropped that was not repeated
ANSWER_S = 15.0  # seconds until the autoscaler has answered; it decides every 5 s
Bundle = dict[str, float]


def machines_of(ray: Any) -> list[Machine]:
    """The cluster's machines that are alive, each with all its CPUs, GPUs and memory; no memory if it has no CPUs."""
    alive = [(n["NodeID"], n["Resources"]) for n in ray.nodes() if n["Alive"]]
    return [Machine(cpus=r.get("CPU", 0.0), gpus=(1.0,) * int(r.get("GPU", 0)), node=node,
                    memory=float(r.get("memory", 0.0)) if r.get("CPU") else 0.0) for node, r in alive]


def bundles_of(runs: Iterable[QueuedRun]) -> list[Bundle]:
    """The resources of runs as Ray's autoscaler takes them: one bundle a worker, the first with the driver's memory."""
    found: list[Bundle] = []
    for need in (run.resources for run in runs):
        worker = {"CPU": need.cpus} | ({"GPU": need.gpus} if need.gpus else {})
        found += [worker | {"memory": need.memory}, *[worker] * (need.workers - 1)]
    return found


def has_autoscaler() -> bool:
    """Whether Ray's autoscaler manages the cluster: then machines have types, which one that was put together has not.

    A cluster of fixed size that KubeRay started has types too. There a request does nothing.
    """
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS

    if any(node.ray_node_type_name for node in _status().cluster_resource_state.node_states):
        return True
    report = _gcs().internal_kv_get(DEBUG_AUTOSCALING_STATUS.encode(), None)  # of Ray's first autoscaler
    types = (json.loads(report).get("autoscaler_report") or {}).get("active_nodes", {}) if report else {}
    return any(not name.startswith("node_") for name in types)


def _gcs() -> Any:
    """Ray's client of the head's server, which knows the nodes."""
    import ray

    raylet: Any = importlib.import_module("ray._raylet")  # has no types
    return raylet.GcsClient(address=ray.get_runtime_context().gcs_address)


def _status() -> Any:
    """Ray's `GetClusterStatusReply`: its nodes, and the answer of the second autoscaler to the request."""
    messages: Any = importlib.import_module("ray.core.generated.autoscaler_pb2")  # has no types
    return messages.GetClusterStatusReply.FromString(_gcs().get_cluster_status(timeout_s=30))


class MachineRequest:
    """What a sweep asks of Ray's autoscaler; empty at first. Other requests on the cluster are added to it by Ray.

    Ray's second autoscaler grants all that is asked for or nothing. Where it refuses, for example because the cluster
    may not have as many machines, the largest part that it grants is searched by halving.
    """

    def __init__(self, ray: Any) -> None:
        self._ray, self._name = ray, f"fss-sweep-{uuid.uuid4().hex}"
        self._sent: list[Bundle] = []
        self._since = self._last = 0.0  # when that was sent first and last, by the monotonic clock
        self._granted, self._refused = 0, math.inf  # bundles: a number granted, a larger one not

    def ask(self, bundles: Sequence[Bundle]) -> bool:
        """Ask for machines that hold `bundles` at once, for a minute; returns False if there is no autoscaler."""
        if not has_autoscaler():
            return False
        if self._sent and time.monotonic() > self._since + ANSWER_S:
            self._learn()
        some = list(bundles if len(bundles) < self._refused else bundles[:int(self._granted + self._refused) // 2])
        now = time.monotonic()
        if some != self._sent:
            self._sent, self._since, self._last = some, now, 0.0
        if now > self._last + LASTS_S / 3:
            self._last = now
            self._call("request_resources", resources=some, expire_after_s=LASTS_S)
        return True

    def withdraw(self) -> None:
        """Take the request back."""
        if self._last:
            self._call("cancel_request")

    def _learn(self) -> None:
        """Read the autoscaler's answer to the last request."""
        asked = len(self._sent)
        if _status().autoscaling_state.infeasible_cluster_resource_constraints:
            self._refused, self._granted = asked, min(self._granted, asked - 1)
        else:
            self._granted = max(self._granted, asked)

    def _call(self, method: str, **arguments: Any) -> None:
        """Call the actor that keeps the cluster's only request for Ray Data and Ray Train: it would overwrite ours."""
        actor = importlib.import_module("ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator")
        with suppress(self._ray.exceptions.RayError):  # it is being restarted
            found = actor.get_or_create_autoscaling_coordinator()
            self._ray.get(getattr(found, method).remote(requester_id=self._name, **arguments), timeout=60)


@contextmanager
def request_machines(ray: Any) -> Iterator[MachineRequest]:
    """Yield a sweep's request to the autoscaler, and take it back at the end."""
    request = MachineRequest(ray)
    try:
        yield request
    finally:
        request.withdraw()
