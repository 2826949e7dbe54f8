"""What a method says about its optimiser, and the learning rate that several official codes share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # recipes read this module, and need no torch
    from torch import nn

Optimizer = Literal["adamw", "sgd"]


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Trained parameters that the published training treats in another way than the recipe says for all others.

    factor        times the recipe's learning rate
    lr            constant learning rate in place of the recipe's and its schedule; 0: the recipe's
    weight_decay  in place of the recipe's; None: the recipe's
    optimizer     in place of the recipe's; "": the recipe's
    """

    parameters: Sequence[nn.Parameter]
    factor: float = 1.0
    lr: float = 0.0
    weight_decay: float | None = None
    optimizer: Optimizer | Literal[""] = ""


def poly_rate(step: int, steps: int, rate: float = 1e-3) -> float:
    """Learning rate of iteration `step` (from 1) of `steps`: rate * (1 - step / steps) ** 0.9, no warm-up."""
    return rate * (1 - step / steps) ** 0.9
