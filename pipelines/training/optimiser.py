"""The optimiser of a run: the recipe's, with the groups of parameters that a method treats in its own way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fss_models.optimisation import ParameterGroup
from pipelines.config.train import TrainConfig
from pipelines.training.task import TrainingTask


class JoinedOptimisers(torch.optim.Optimizer):
    """Several optimisers as one. The state dict holds one entry for each."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = list(parts)
        super().__init__([p for part in parts for group in part.param_groups for p in group["params"]], {})
        self.param_groups = [group for part in parts for group in part.param_groups]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take a step with each optimiser."""
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear all gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The states of the optimisers, in order."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a result of `state_dict`."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def make_optimiser(task: TrainingTask) -> torch.optim.Optimizer:
    """The optimiser of all trained parameters; where a method's groups need both kinds, AdamW and SGD joined."""
    train, own = task.train, list(getattr(task.model, "parameter_groups", tuple)())
    taken = {id(p) for group in own for p in group.parameters}
    rest = [p for p in task.parameters if id(p) not in taken]
    groups = [ParameterGroup(parameters=rest), *own] if rest else own
    made = [_make(kind, [_options(g, train) for g in groups if (g.optimizer or train.optimizer) == kind], train)
            for kind in ("adamw", "sgd") if any((g.optimizer or train.optimizer) == kind for g in groups)]
    return made[0] if len(made) == 1 else JoinedOptimisers(made)


def set_rates(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Set every group's learning rate for a step whose rate is `lr`."""
    for group in optimiser.param_groups:
        group["lr"] = group.get("constant_lr", 0.0) or lr * group.get("factor", 1.0)


def _options(group: ParameterGroup, train: TrainConfig) -> dict[str, Any]:
    parameters: list[nn.Parameter] = [p for p in group.parameters if p.requires_grad]
    decay = train.weight_decay if group.weight_decay is None else group.weight_decay
    return {"params": parameters, "lr": group.lr or train.lr * group.factor, "weight_decay": decay,
            "factor": group.factor, "constant_lr": group.lr}


def _make(kind: str, groups: list[dict[str, Any]], train: TrainConfig) -> torch.optim.Optimizer:
    if kind == "sgd":
        return torch.optim.SGD(groups, lr=train.lr, momentum=train.momentum)
    return torch.optim.AdamW(groups, lr=train.lr)
