"""A method that a recipe compares."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pipelines.config.section import Section


class MethodConfig(Section):
    """A method that a recipe compares, with its preset and settings."""

    name: str  # name of the method, such as sansa
    preset: str = "nano"  # size that the method is built at
    config: dict[str, Any] = {}  # settings of the method
    # SAM 2 checkpoint: path, URL or hf://owner/repository/file; "random": random values.
    weights: str = ""  # Empty: the weights that ship for the preset, else random values
    sha256: str = ""  # sha256 of that file

    @property
    def key(self) -> str:
        """A string that is equal for equal entries, in whatever order their settings are."""
        return json.dumps(self.model_dump(), sort_keys=True)


def method_labels(methods: list[MethodConfig]) -> list[str]:
    """A short name for each method of a recipe: its name, followed by preset and digest where that is ambiguous."""
    labels = []
    for m in methods:
        same = [o for o in methods if o.name == m.name]
        label = m.name if len(same) == 1 else f"{m.name}-{m.preset}"
        if sum(o.preset == m.preset for o in same) > 1:
            label += "-" + hashlib.sha256(m.key.encode()).hexdigest()[:4]
        labels.append(label)
    return labels
