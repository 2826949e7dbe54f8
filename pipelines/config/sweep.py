"""The runs of a sweep, and the settings that a search tries."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from pipelines.config.section import Notify, Positive, Section


class SweepConfig(Section):
    """The runs of a sweep: method x fold x seed, for every combination of `matrix`."""

    # key of the recipe -> list of its values; short names: preset, shots (train and eval), dataset (data). To or from a
    # benchmark, a dataset with a source of its own takes no folds, fold_rule, split, min_* or max_side from data
    matrix: dict[str, list[Any]] = {}
    folds: list[int] = []  # empty: all folds; -1: trained on all classes, without a fold
    seeds: list[int] = [0]  # each run is made with each of these
    parallel: int = Field(0, ge=0)  # largest number of runs at a time; 0: as many as the cluster has room for
    cpus_per_run: float = Field(1.0, gt=0)  # of all workers of a run together, as are the GPUs
    gpus_per_run: float = Field(0.0, ge=0)  # a fraction shares a GPU
    retries: int = Field(1, ge=0)  # further tries of a run that fails
    notify: Notify = ""  # URL that is told when the sweep is done, stopped or failed, signed with FSS_WEBHOOK_SECRET


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
    """The search of `fss search`: trials are scored on held-out base classes of folds, as `train.select` says."""

    # settings below train and methods.N.config -> their ranges; those of methods.N are tried for that method alone
    space: dict[str, RangeConfig] = {}
    trials: Positive = 16  # number of choices of settings, for each method
    folds: list[int] = []  # a trial is trained and scored on each of these; empty: those of the sweep
    # tpe: chooses by the scores of earlier trials (tree-structured Parzen estimator); random: independent of them
    sampler: Literal["tpe", "random"] = "tpe"
    stop_early: bool = True  # Hyperband; false: every trial is trained to its end
    rungs: Positive = 3  # numbers of steps at which trials are compared; the last is `train.steps`
    eta: int = Field(3, ge=2)  # one trial in `eta` goes on to the next rung, which has `eta` times the steps
    seed: int = 0  # of the choice of settings
