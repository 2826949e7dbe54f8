"""Configuration of frozen SAM 2."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Sam2FrozenConfig:
    """No settings: SAM 2 is used as released."""
