"""Ray's provider of nodes on one machine, for machine types that say how much memory they have."""

from __future__ import annotations

from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class MachineProvider(FakeMultiNodeProvider):
    """Nodes find their memory themselves: Ray's own provider would start them with a custom resource of that name."""

    def _create_node_with_resources_and_labels(self, node_config: Any, tags: Any, count: int, resources: dict[str, Any],
                                               labels: Any) -> None:
        known = {name: amount for name, amount in resources.items() if name != "memory"}
        super()._create_node_with_resources_and_labels(node_config, tags, count, known, labels)
