"""A run: what is trained on what. Its name is a function of its content, so the same command finds it again."""

from __future__ import annotations

import hashlib
import json
import subprocess
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fss_models import registry
from fss_models.presets import PRESETS
from fss_models.shipped.files import ShippedWeights, find_weights
from pipelines.config import EvalConfig, MethodConfig, Recipe, Section, TrainConfig

# Settings that change how a run is watched or how fast it is, not what it computes.
_NOT_IN_NAME = {"checkpoint_every", "log_every", "pixel_bytes"}
_NAMED_IF_SET = {"accumulate", "min_workers", "compile"}  # they change the rounding


class Share(Section):
    """A further dataset of a run: its shards and its share of the clips."""

    shards: str
    data_hash: str
    weight: float


class RunSpec(Section):
    """(dataset, fold, method, preset, shot, seed, config). `fold` None is a refit on all classes."""

    dataset: str
    shards: str  # URL
    data_hash: str  # content hash of the shards
    fold: int | None
    method: MethodConfig
    seed: int = 0
    train: TrainConfig = TrainConfig()
    mixture: tuple[Share, ...] = ()
    shipped: str = ""  # sha256 of the shipped weights that the method is built on
    holdout: tuple[int, ...] = ()  # base classes that this training leaves out too (`train.selection`)
    selected_on: str = ""  # digest of the evaluation whose episodes choose the checkpoint (selection: published)

    @property
    def trains(self) -> bool:
        """Whether the method has anything to minimise."""
        return registry.method_class(self.method.name).trains

    @property
    def steps(self) -> int:
        """Optimiser steps; 0 for a method without training."""
        return (self.train.stop or self.train.steps) if self.trains else 0

    @property
    def digest(self) -> str:
        """8 hex digits over everything that decides the result."""
        train = _deciding(self.train) if self.trains else {}
        content: list[Any] = [self.data_hash, self.method.model_dump(), train]
        if self.shipped:
            content.append(self.shipped)
        if self.mixture:
            content += [[m.data_hash, m.weight] for m in self.mixture]
        if self.holdout or self.selected_on:
            content.append({"holdout": self.holdout, "selected_on": self.selected_on})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def name(self) -> str:
        """Such as `shapes-sansa-nano-f0-k1-s0-1a2b3c4d`."""
        fold = "all" if self.fold is None else str(self.fold)
        method = f"{self.method.name}-{self.method.preset}"
        return f"{self.dataset}-{method}-f{fold}-k{self.train.shots}-s{self.seed}-{self.digest}"

    @property
    def params(self) -> dict[str, Any]:
        """Parameters as MLflow shows them."""
        return {"dataset": self.dataset, "fold": "all" if self.fold is None else self.fold, "seed": self.seed,
                "method": self.method.model_dump(), "train": self.train.model_dump() if self.trains else {}}


def _deciding(train: TrainConfig) -> dict[str, Any]:
    """The settings that decide a run's result; those of what it does not use are left out."""
    unused = (set() if train.selection != "none" else {"selection", "select"}) | (set() if train.stop else {"stop"})
    unused |= {k for k in _NAMED_IF_SET if getattr(train, k) == TrainConfig.model_fields[k].default}
    return train.model_dump(exclude=_NOT_IN_NAME | unused)


def sweep_specs(
    recipe: Recipe, *, shards: str, data_hash: str, trains: dict[int | None, TrainConfig],
    mixture: tuple[Share, ...] = (),
) -> list[RunSpec]:
    """The matrix method x fold x seed. A method without training has one run a fold, whatever the seeds.

    `trains` maps each fold to its training section, whose steps may depend on the fold's photos.
    """
    specs = []
    for method in recipe.methods:
        seeds = recipe.sweep.seeds if registry.method_class(method.name).trains else recipe.sweep.seeds[:1]
        specs += [RunSpec(dataset=recipe.data.name, shards=shards, data_hash=data_hash, fold=fold, method=method,
                          seed=seed, train=train, mixture=mixture, shipped=shipped_sha(method))
                  for fold, train in trains.items() for seed in seeds]
    return specs


def shipped_weights(method: MethodConfig) -> ShippedWeights | None:
    """The installed weights that ship for the method's preset, None where it is not built on any."""
    preset = PRESETS.get(method.preset)
    return find_weights(preset.shipped) if preset and not method.weights else None


def shipped_sha(method: MethodConfig) -> str:
    """Their sha256, or ""."""
    found = shipped_weights(method)
    return found.provenance.sha256 if found else ""


def method_labels(methods: list[MethodConfig]) -> list[str]:
    """A short name for each entry of the comparison: the method, with preset and digest where that is ambiguous."""
    labels = []
    for m in methods:
        same = [o for o in methods if o.name == m.name]
        label = m.name if len(same) == 1 else f"{m.name}-{m.preset}"
        if sum(o.preset == m.preset for o in same) > 1:
            label += "-" + hashlib.sha256(m.key.encode()).hexdigest()[:4]
        labels.append(label)
    return labels


def eval_digest(config: EvalConfig, list_hash: str = "") -> str:
    """8 hex digits over what decides an evaluation (the batch does not). `list_hash`: content hash of `eval.list`."""
    unused = {"batch"} | ({"draws"} if config.draws == 1 else set())
    content = json.dumps(config.model_dump(exclude=unused), sort_keys=True) + (list_hash if config.list else "")
    return hashlib.sha256(content.encode()).hexdigest()[:8]


@lru_cache(maxsize=1)
def code_version() -> str:
    """The package's version, with the commit where it runs from a checkout."""
    try:
        release = version("fss")
    except PackageNotFoundError:
        release = "unknown"
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return release
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    return f"{release}+{found.stdout.strip()}" if found.returncode == 0 else release
