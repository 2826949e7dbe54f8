"""Which runs a sweep has, and which settings a search tries."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from pipelines.config.section import Positive, Section


class SweepConfig(Section):
    """Which runs: method x fold x seed, and every combination of `matrix`."""

    # any key of the recipe -> the values it takes; preset, shots (train and eval) and dataset (data) are short names
    matrix: dict[str, list[Any]] = {}
    folds: list[int] = []  # empty: all; -1: no fold, trained on all classes
    seeds: list[int] = [0]
    parallel: int = Field(0, ge=0)  # runs at a time; 0: as many as the cluster has room for
    cpus_per_run: float = Field(1.0, gt=0)
    gpus_per_run: float = Field(0.0, ge=0)
    retries: int = Field(1, ge=0)


class RangeConfig(Section):
    """The values that a searched setting may take: one of the three."""

    choice: list[Any] = []
    uniform: tuple[float, float] | None = None
    log: tuple[float, float] | None = None  # uniform in the logarithm

    @model_validator(mode="after")
    def _one_of_them(self) -> RangeConfig:
        if sum([bool(self.choice), self.uniform is not None, self.log is not None]) != 1:
            raise ValueError("give one of choice, uniform and log")
        low, high = self.uniform or self.log or (1.0, 2.0)
        if low >= high or (self.log and low <= 0):
            raise ValueError(f"no range: {low:g} to {high:g}")
        return self


class SearchConfig(Section):
    """Hyper-parameters tried by `fss search`, scored on held-out base classes of a fold as `train.select` says."""

    space: dict[str, RangeConfig] = {}  # settings below train and methods.0.config
    trials: Positive = 16
    fold: int = Field(0, ge=0)
    stop_early: bool = True  # ASHA: at each scored step, trials outside the best third go no further
    seed: int = 0
