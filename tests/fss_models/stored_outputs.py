"""Errors of outputs against those that our verified code gave, by kind of tensor, and their limits."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fss_models.verification.tolerances import STORED

SMALLEST = 1e-6  # a stored tensor without larger values is compared as if it had this one


def kind_of(name: str) -> str:
    """`loss` and `gradient` by their names, everything else is `forward`."""
    last = name.rpartition("/")[2]
    return "gradient" if "grad" in last else "loss" if "loss" in name else "forward"


def errors(found: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> dict[str, float]:
    """The largest relative error of each kind. Every name of `found` must be stored."""
    worst: dict[str, float] = {}
    for name, value in found.items():
        worst[kind_of(name)] = max(worst.get(kind_of(name), 0.0), _error(value.detach(), stored[name]))
    return worst


def _error(ours: Tensor, stored: Tensor) -> float:
    if ours.shape != stored.shape or not bool(ours.isfinite().all()):
        return float("inf")
    return float((ours - stored).abs().max()) / max(float(stored.abs().max()), SMALLEST)


def excessive(worst: Mapping[str, float]) -> dict[str, float]:
    """The kinds whose error no equal build has."""
    return {kind: error for kind, error in worst.items() if error > STORED[kind].tolerance}


def mistaken(worst: Mapping[str, float]) -> dict[str, float]:
    """The kinds whose error only a mistake has."""
    return {kind: error for kind, error in worst.items() if error > STORED[kind].floor}
