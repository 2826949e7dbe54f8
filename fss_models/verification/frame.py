"""The frame of all golden cases: a folder's cases are run one after the other, and every quantity becomes a check.

A folder of cases has a `cases.json` (case -> {"method": ..., "kind": ..., ...}). A method plugs in with a module
`fss_models.verification.<method>` that has

    run_case(folder: Path, name: str, case: dict) -> Iterator[GoldenCheck]

and reads everything (sizes, K, prompts) from the case's own files, so that folders it has never seen work. It may also
have `run_units(folder) -> Iterator[GoldenCheck]` for files of the folder that `cases.json` does not list.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Self

from safetensors.torch import load_file
from torch import Tensor

from fss_models.errors import FssError
from fss_models.verification.tolerances import EXACT, Bound


@dataclass(frozen=True, kw_only=True)
class GoldenCheck:
    """The comparison of one quantity of one case. `error` is nan where nothing was compared; `note` says why."""

    case: str
    quantity: str
    error: float
    bound: Bound
    note: str = ""

    @property
    def tolerance(self) -> float:
        """The largest error that passes."""
        return self.bound.tolerance

    @property
    def passed(self) -> bool:
        """Whether the quantity was compared and lies within its tolerance."""
        return self.error <= self.bound.tolerance

    @property
    def mistaken(self) -> bool:
        """Whether the error lies beyond the floor of a mistake, not just beyond the tolerance."""
        return self.error > self.bound.floor

    def as_dict(self) -> dict[str, Any]:
        """The check as `fss verify-golden --json` prints it."""
        return {"case": self.case, "quantity": self.quantity, "error": self.error, "tolerance": self.tolerance,
                "note": self.note, "passed": self.passed}


class WorstErrors:
    """Collects the largest error of each quantity of one case; `bounds` are the limits of quantities known by name."""

    def __init__(self, case: str, bounds: Mapping[str, Bound] | None = None) -> None:
        self.case, self.bounds = case, dict(bounds or {})
        self._worst: dict[tuple[str, Bound], float] = {}

    def record(self, quantity: str, error: float, bound: Bound | None = None) -> None:
        """Record an error of a quantity; `bound` is needed if `bounds` does not name the quantity."""
        key = quantity, bound or self.bounds[quantity]
        self._worst[key] = max(self._worst.get(key, 0.0), error)

    def checks(self) -> Iterator[GoldenCheck]:
        """One check for each quantity: those of `bounds` in its order, then the others as they were recorded."""
        order = {quantity: place for place, quantity in enumerate(self.bounds)}
        for (quantity, bound), error in sorted(self._worst.items(), key=lambda item: order.get(item[0][0], len(order))):
            yield GoldenCheck(case=self.case, quantity=quantity, error=error, bound=bound)


class CoveredErrors(WorstErrors):
    """The worst errors of one case, each of whose stored tensors in `want` has to be asked for once (`seen`)."""

    def __init__(self, case: str, want: Mapping[str, Tensor]) -> None:
        super().__init__(case)
        self.want, self.seen = dict(want), set[str]()

    def checks(self) -> Iterator[GoldenCheck]:
        """One check for each quantity, and one that every stored tensor was asked for."""
        yield from super().checks()
        missed = sorted(self.want.keys() - self.seen)
        note = f"not compared: {', '.join(missed)}" if missed else ""
        yield GoldenCheck(case=self.case, quantity="coverage", error=float(len(missed)), bound=EXACT, note=note)


@dataclass(frozen=True, kw_only=True)
class CaseFiles:
    """The files of one case: its settings, its weights by official name, inputs and outputs."""

    name: str
    config: dict[str, Any]
    weights: dict[str, Tensor]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]

    @classmethod
    def load(cls, folder: Path, name: str) -> Self:
        """Read `folder/name`."""
        tensors = {n: load_file(folder / name / f"{n}.safetensors") for n in ("weights", "inputs", "outputs")}
        return cls(name=name, config=json.loads((folder / name / "config.json").read_text())["config"], **tensors)

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The weights whose names begin with `prefix`, without it."""
        return {k.removeprefix(prefix): v for k, v in self.weights.items() if k.startswith(prefix)}


def run_folder(folder: str | Path) -> Iterator[GoldenCheck]:
    """Run all cases of a folder, one after the other. Raises `FssError` if the folder does not have the layout."""
    root = Path(folder)
    if not (root / "cases.json").is_file():
        raise FssError("has no cases.json", where=str(root), hint="give a folder of golden cases")
    cases = json.loads((root / "cases.json").read_text())
    for name, case in cases.items():
        yield from _module(case.get("method", ""), root).run_case(root, name, case)
    for method in sorted({case["method"] for case in cases.values()}):
        if run_units := getattr(_module(method, root), "run_units", None):
            yield from run_units(root)


def _module(method: str, root: Path) -> ModuleType:
    module = f"{__package__}.{method}"
    if not method or importlib.util.find_spec(f"fss_models.methods.{method}") is None:
        raise FssError(f"cases.json names method {method!r}, which does not exist", where=str(root))
    if importlib.util.find_spec(module) is None:
        raise FssError(f"method {method!r} has no golden runner", where=str(root))
    return importlib.import_module(module)
