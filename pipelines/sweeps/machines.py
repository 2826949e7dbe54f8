"""The machines of a Ray cluster, and the request to Ray's autoscaler for those that a sweep lacks.

Ray keeps one such request a cluster, and keeps it for ever. So one actor makes it for all sweeps: it adds up what they
ask for, and forgets a sweep that has not asked again for a minute, because it was killed.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from pipelines.sweeps.schedule import Machine, QueuedRun

FORGET_S = 60.0  # seconds without a word from a sweep after which its request is dropped
LOOK_S = 15.0  # seconds between two looks at the autoscaler's answer; it decides every 5 s
ACTOR, NAMESPACE = "fss-machine-requests", "fss"
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


class MachineRequests:
    """The actor that asks Ray's autoscaler for what all sweeps on a cluster need together; it ends when none is left.

    Ray's second autoscaler grants a request as a whole or not at all. Where it refuses one, for example because the
    cluster may not have as many machines, the largest part that it grants is searched by halving.
    """

    def __init__(self) -> None:
        self._needs: dict[str, tuple[float, list[Bundle]]] = {}  # sweep -> (when it is forgotten, its bundles)
        self._granted, self._refused = 0, math.inf  # bundles: a number that was granted, a larger not
        self._sent: list[Bundle] | None = None  # the last request; one that another actor left behind is not known
        self._since = time.monotonic()  # when it was sent
        self._lock = threading.Lock()
        threading.Thread(target=self._live, daemon=True).start()

    def ask(self, sweep: str, bundles: Sequence[Bundle]) -> None:
        """Ask for machines that hold all bundles of a sweep at once, instead of those that it asked for before."""
        with self._lock:
            self._needs[sweep] = time.monotonic() + FORGET_S, list(bundles)
            self._send()

    def withdraw(self, sweep: str) -> None:
        """Drop the request of a sweep."""
        with self._lock:
            self._drop(sweep)

    def _bundles(self) -> list[Bundle]:
        """The bundles to ask for: all of them, or as many as are still to be tried."""
        every = [bundle for _, some in self._needs.values() for bundle in some]
        return every if len(every) < self._refused else every[:int(self._granted + self._refused) // 2]

    def _send(self) -> None:
        from ray.autoscaler.sdk import request_resources

        if (bundles := self._bundles()) != self._sent:
            request_resources(bundles=bundles)
            self._sent, self._since = bundles, time.monotonic()

    def _live(self) -> None:
        from ray.exceptions import RayError

        while True:
            time.sleep(LOOK_S / 3)
            with self._lock, suppress(RayError):  # a head that is lost comes back, or takes this actor along
                now = time.monotonic()
                for sweep in [name for name, (until, _) in self._needs.items() if until < now]:
                    self._drop(sweep)
                if self._needs and now > self._since + LOOK_S:
                    self._search()
                if not self._needs and now > self._since + FORGET_S:
                    os._exit(0)  # an actor cannot leave from a thread in another way

    def _drop(self, sweep: str) -> None:
        self._needs.pop(sweep, None)
        self._granted, self._refused = 0, math.inf
        self._send()

    def _search(self) -> None:
        """Read the autoscaler's answer to the last request, and send the next one."""
        asked = len(self._sent or [])
        if asked and _status().autoscaling_state.infeasible_cluster_resource_constraints:
            self._refused, self._granted = asked, min(self._granted, asked - 1)
        else:
            self._granted = max(self._granted, asked)
        self._send()


class MachineRequest:
    """The request of one sweep; see `request_machines`."""

    def __init__(self, ray: Any) -> None:
        self._ray, self._sweep, self._asked = ray, uuid.uuid4().hex, False

    def ask(self, runs: Iterable[QueuedRun]) -> bool:
        """Ask for machines for all `runs` at once; returns False on a cluster without an autoscaler."""
        if not has_autoscaler():
            return False
        self._asked = True
        with suppress(self._ray.exceptions.RayError):  # the next one will be made by a new actor
            self._ray.get(self._actor().ask.remote(self._sweep, bundles_of(runs)), timeout=60)
        return True

    def withdraw(self) -> None:
        """Take the request back."""
        if self._asked:
            with suppress(self._ray.exceptions.RayError):
                self._ray.get(self._actor().withdraw.remote(self._sweep), timeout=60)

    def _actor(self) -> Any:
        """The actor, on the machine of the first sweep that asks: one of the autoscaler's would take it along."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(self._ray.get_runtime_context().get_node_id(), soft=True)
        named = {"name": ACTOR, "namespace": NAMESPACE, "lifetime": "detached", "get_if_exists": True}
        return self._ray.remote(MachineRequests).options(num_cpus=0, scheduling_strategy=here, **named).remote()


@contextmanager
def request_machines(ray: Any) -> Iterator[MachineRequest]:
    """Yield a sweep's request to the autoscaler, which is empty at first, and take it back at the end."""
    request = MachineRequest(ray)
    try:
        yield request
    finally:
        request.withdraw()
