"""A run: a method trained on data. Its name follows from its content, so that the same command finds it again."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import Field

from fss_models import registry
from fss_models.presets import PRESETS
from fss_models.shipped.files import ShippedWeights, find_weights
from pipelines.config.base_learner import BaseLearnerConfig, BaseLearnerSpec
from pipelines.config.evaluate import EvalConfig
from pipelines.config.method import MethodConfig
from pipelines.config.section import Section, as_named
from pipelines.config.train import TrainConfig

# Settings that change how a run is watched or how fast it is, not what it computes.
_NOT_IN_NAME = {"checkpoint_every", "log_every", "pixel_bytes"}
# The first three change the rounding; the others came later than the names of older runs.
_NAMED_IF_SET = {"accumulate", "min_workers", "compile", "optimizer", "momentum"}


class MixtureShare(Section):
    """A further dataset of a run: its shards, their content hash, and its share of the clips."""

    shards: str
    data_hash: str
    weight: float
    means: dict[str, str] = Field(default_factory=dict)  # class -> what it means, where its name does not say so


class RunSpec(Section):
    """The content of a run: dataset, fold, method, preset, shot, seed, config. `fold` None: a refit on all classes."""

    dataset: str
    shards: str  # URL
    data_hash: str  # content hash of the shards
    fold: int | None
    method: MethodConfig
    seed: int = 0
    train: TrainConfig = TrainConfig()
    mixture: tuple[MixtureShare, ...] = ()
    shipped: str = ""  # sha256 of the shipped weights that the method is built on, "" without any
    holdout: tuple[int, ...] = ()  # ids of base classes that this training leaves out (`train.selection`)
    selected_on: str = ""  # digest of the evaluation that chooses the checkpoint (selection: published)
    base_learner: BaseLearnerConfig | None = None  # how its base learner is trained, for a method that builds on one

    @property
    def trains(self) -> bool:
        """Whether the method has anything to train."""
        return registry.method_class(self.method.name).trains

    @property
    def learner(self) -> BaseLearnerSpec | None:
        """The base learner that the run builds on: of the same data, fold, seed and held-out classes."""
        if self.base_learner is None:
            return None
        return BaseLearnerSpec(dataset=self.dataset, shards=self.shards, data_hash=self.data_hash, fold=self.fold,
                               preset=self.method.preset, seed=self.seed, config=self.base_learner,
                               holdout=self.holdout)

    @property
    def steps(self) -> int:
        """Number of optimiser steps; 0 for a method without training."""
        return (self.train.stop or self.train.steps) if self.trains else 0

    @property
    def digest(self) -> str:
        """8 hex digits: a hash of everything that decides the result."""
        train = _deciding(self.train) if self.trains else {}
        content: list[Any] = [self.data_hash, self.method.model_dump(), train]
        if self.shipped:
            content.append(self.shipped)
        if self.mixture:
            content += [[m.data_hash, m.weight, *([m.means] if m.means else [])] for m in self.mixture]
        if self.holdout or self.selected_on:
            content.append({"holdout": self.holdout, "selected_on": self.selected_on})
        if self.learner:
            content.append(self.learner.name)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def name(self) -> str:
        """Name of the run, such as `shapes-sansa-nano-f0-k1-s0-1a2b3c4d`."""
        fold = "all" if self.fold is None else str(self.fold)
        method = f"{self.method.name}-{self.method.preset}"
        return f"{self.dataset}-{method}-f{fold}-k{self.train.shots}-s{self.seed}-{self.digest}"

    @property
    def params(self) -> dict[str, Any]:
        """Parameters of the run for MLflow."""
        return {"dataset": self.dataset, "fold": "all" if self.fold is None else self.fold, "seed": self.seed,
                "method": self.method.model_dump(), "train": self.train.model_dump() if self.trains else {}}


def _deciding(train: TrainConfig) -> dict[str, Any]:
    """The settings that decide a run's result, without those that the run does not use."""
    unused = (set() if train.selection != "none" else {"selection", "select"}) | (set() if train.stop else {"stop"})
    unused |= {k for k in _NAMED_IF_SET if getattr(train, k) == TrainConfig.model_fields[k].default}
    return as_named(train.model_dump(exclude=_NOT_IN_NAME | unused))


def shipped_weights(method: MethodConfig) -> ShippedWeights | None:
    """The installed weights that ship for the method's preset; None if the method is not built on them."""
    preset = PRESETS.get(method.preset)
    return find_weights(preset.shipped) if preset and not method.weights else None


def shipped_sha(method: MethodConfig) -> str:
    """sha256 of the shipped weights that the method is built on, "" without any."""
    found = shipped_weights(method)
    return found.provenance.sha256 if found else ""


def eval_digest(config: EvalConfig, list_hash: str = "") -> str:
    """8 hex digits: a hash of what decides an evaluation (not its batch). `list_hash`: content hash of `eval.list`."""
    unused = {"batch"} | ({"draws"} if config.draws == 1 else set())
    unused |= {"precision"} if config.precision == "float32" else set()
    content = json.dumps(config.model_dump(exclude=unused), sort_keys=True) + (list_hash if config.list else "")
    return hashlib.sha256(content.encode()).hexdigest()[:8]
