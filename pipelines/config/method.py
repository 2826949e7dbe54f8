"""One entry of the comparison."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pipelines.config.section import Section


class MethodConfig(Section):
    """One entry of the comparison."""

    name: str
    preset: str = "nano"
    config: dict[str, Any] = {}
    # SAM 2 checkpoint: path, URL or hf://repo/file, with sha256 below. Empty: what ships for the preset, else random
    weights: str = ""  # random: random values even where weights ship
    sha256: str = ""

    @property
    def key(self) -> str:
        """The same for equal entries, whatever the order of their settings (a stored one's are sorted)."""
        return json.dumps(self.model_dump(), sort_keys=True)


def method_labels(methods: list[MethodConfig]) -> list[str]:
    """A short name for each entry of the comparison: the method, with preset and digest where that is ambiguous."""
    labels = []
    for m in methods:
        same = [o for o in methods if o.name == m.name]
        label = m.name if len(same) == 1 else f"{m.name}-{m.preset}"
        if sum(o.preset == m.preset for o in same) > 1:
            label += "-" + hashlib.sha256(m.key.encode()).hexdigest()[:4]
        labels.append(label)
    return labels
