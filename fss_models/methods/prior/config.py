"""Configuration of the training-free prior."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """Settings of the prior: logits are (cosine to foreground - cosine to background) * temperature."""

    temperature: float = 10.0
