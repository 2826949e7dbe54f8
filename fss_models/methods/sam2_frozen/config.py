"""Configuration of frozen SAM 2."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Sam2FrozenConfig:
    """Nothing to choose: SAM 2 as released."""
