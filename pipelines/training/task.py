"""What one kind of training run differs in from another. The engine (`loop.py`, `worker.py`) does all the rest."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from pipelines.config.train import TrainConfig
from pipelines.training.state import History

Batches = Callable[[Any, int], Generator[tuple[Any, Any]]]
OnStep = Callable[[int, Any], Mapping[str, float] | None]


@dataclass(frozen=True, kw_only=True)
class WorkerRank:
    """Rank of a worker, number of workers of its run, and the device that it trains on."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class TrainingTask:
    """A training as one worker of its run sees it.

    name        name of the run, for errors
    identity    what a checkpoint must say of itself to be one of this run
    seed        seed of the global random generators; each worker adds its rank
    train       the optimiser's settings, and how often rows and checkpoints are written
    steps       number of optimiser steps
    model       the module that is trained in place. It has `losses(batch)`, named losses whose sum is minimised, and
                `trainable_state()` and `load_trainable_state(state)`, as every `Segmenter` does
    batches     (position, step) -> batches from `step` on, each with the position after it. A position is what
                checkpoints keep of the place in the data, None at the start. Batches have `to(device)` and, for
                `train.accumulate`, `split(parts)`
    on_step     called with the number of steps done and the model after every step, before that step's checkpoint;
                figures that it returns are added to the next row
    finish      called on worker 0 with the history of the whole training; its result is that of `train_run`
    section     prefix of the settings' names in hints
    """

    name: str
    identity: Mapping[str, Any]
    seed: int
    train: TrainConfig
    steps: int
    model: Any
    batches: Batches
    on_step: OnStep | None = None
    finish: Callable[[History], Any] = lambda history: None
    section: str = "train."

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that are trained."""
        return [p for p in self.model.parameters() if p.requires_grad]


OpenTask = Callable[[Any, WorkerRank], TrainingTask]  # (the run's context, worker)
