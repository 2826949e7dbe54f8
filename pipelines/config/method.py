"""One entry of the comparison."""

from __future__ import annotations

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
