"""The runs of a sweep, and the settings that a search tries."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from pipelines.config.section import Positive, Section


class SweepConfig(Section):
    """The runs of a sweep: method x fold x seed, for every combination of `matrix`."""

    # key of the recipe -> list of its values; short names: preset, shots (train and eval), dataset (data)
    matrix: dict[str, list[Any]] = {}
    folds: list[int] = []  # empty: all folds; -1: trained on all classes, without a fold
    seeds: list[int] = [0]  # each run is made with each of these
    parallel: int = Field(0, ge=0)  # largest number of runs at a time; 0: as many as the cluster has room for
    cpus_per_run: float = Field(1.0, gt=0)  # of all workers of a run together, as are the GPUs
    gpus_per_run: float = Field(0.0, ge=0)  # a fraction shares a GPU
    retries: int = Field(1, ge=0)  # further tries of a run that fails


class RangeConfig(Section):
    """The values that a searched setting may take, given in one of three ways."""

    choice: list[Any] = []  # one of these values
    uniform: tuple[float, float] | None = None  # between two numbers
    log: tuple[float, float] | None = None  # between two positive numbers, uniform in the logarithm

    @model_validator(mode="after")
    def _one_of_them(self) -> RangeConfig:
        if sum([bool(self.choice), self.uniform is not None, self.log is not None]) != 1:
            raise ValueError("give exactly one of choice, uniform and log")
        low, high = self.uniform or self.log or (1.0, 2.0)
        if low >= high or (self.log and low <= 0):
            raise ValueError(f"{low:g} to {high:g} is not a valid range")
        return self


class SearchConfig(Section):
    """The search of `fss search`: trials are scored on held-out base classes of a fold, as `train.select` says."""

    space: dict[str, RangeConfig] = {}  # settings below train and methods.0.config -> their ranges
    trials: Positive = 16  # number of choices of settings
    fold: int = Field(0, ge=0)  # the fold whose base classes are used
    stop_early: bool = True  # ASHA: at each scored step, trials outside the best third are stopped
    seed: int = 0  # of the choice of settings
