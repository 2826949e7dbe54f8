"""The optimiser of a run: SGD and AdamW, a method's own groups, and their state in checkpoints."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from fss_models.optimisation import ParameterGroup
from pipelines.config.run import RunSpec, _deciding
from pipelines.config.train import TrainConfig
from pipelines.training.loop import lr_at
from pipelines.training.optimiser import JoinedOptimisers, make_optimiser, set_rates
from pipelines.training.task import TrainingTask


class TwoParts(nn.Module):
    """Two weights, one of which has an optimiser of its own."""

    def __init__(self, *, own: bool = True) -> None:
        super().__init__()
        self.plain, self.special, self.own = nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False), own

    def parameter_groups(self) -> list[ParameterGroup]:
        group = ParameterGroup(parameters=list(self.special.parameters()), optimizer="adamw", lr=0.01, weight_decay=0.5)
        return [group] if self.own else []

    def loss(self, x: Tensor) -> Tensor:
        return (self.plain(x) ** 2).sum() + (self.special(x) - 1).abs().sum()


def task_of(model: nn.Module, **train: Any) -> TrainingTask:
    return TrainingTask(name="t", identity={}, seed=0, train=TrainConfig(**train), steps=9, model=model,
                        batches=lambda position, step: iter(()))  # type: ignore[arg-type, return-value]


def steps(model: TwoParts, optimiser: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        set_rates(optimiser, 0.1 / (1 + step))
        optimiser.zero_grad()
        model.loss(torch.full((1, 3), 0.1 * (step + 1))).backward()
        optimiser.step()


def test_each_part_is_trained_by_its_own_optimiser() -> None:
    torch.manual_seed(0)
    model, plain = TwoParts(), TwoParts()
    plain.load_state_dict(model.state_dict())
    joined = make_optimiser(task_of(model, optimizer="sgd", momentum=0.8, weight_decay=0.1))
    assert isinstance(joined, JoinedOptimisers)
    sgd = torch.optim.SGD(plain.plain.parameters(), lr=1, momentum=0.8, weight_decay=0.1)
    adamw = torch.optim.AdamW(plain.special.parameters(), lr=0.01, weight_decay=0.5)
    steps(model, joined, 0, 3)
    for step in range(3):
        sgd.param_groups[0]["lr"] = 0.1 / (1 + step)
        plain.zero_grad()
        plain.loss(torch.full((1, 3), 0.1 * (step + 1))).backward()
        sgd.step()
        adamw.step()
    assert torch.equal(model.plain.weight, plain.plain.weight)
    assert torch.equal(model.special.weight, plain.special.weight)


def test_a_joined_optimiser_goes_on_from_its_state_exactly() -> None:
    torch.manual_seed(0)
    whole, resumed = TwoParts(), TwoParts()
    resumed.load_state_dict(whole.state_dict())
    one, first = (make_optimiser(task_of(m, optimizer="sgd")) for m in (whole, resumed))
    steps(whole, one, 0, 6)
    steps(resumed, first, 0, 3)
    again = make_optimiser(task_of(resumed, optimizer="sgd"))
    again.load_state_dict(first.state_dict())
    steps(resumed, again, 3, 6)
    assert all(torch.equal(v, resumed.state_dict()[k]) for k, v in whole.state_dict().items())


def test_without_groups_there_is_one_optimiser_and_a_factor_scales_its_rate() -> None:
    model = TwoParts(own=False)
    assert type(make_optimiser(task_of(model))) is torch.optim.AdamW
    assert type(make_optimiser(task_of(model, optimizer="sgd"))) is torch.optim.SGD
    group = ParameterGroup(parameters=list(model.special.parameters()), factor=10.0)
    model.parameter_groups = lambda: [group]  # type: ignore[method-assign]
    optimiser = make_optimiser(task_of(model))
    set_rates(optimiser, 0.2)
    assert [g["lr"] for g in optimiser.param_groups] == [0.2, 2.0]


def test_the_step_schedule_falls_to_a_tenth_after_each_third() -> None:
    train = TrainConfig(schedule="step", steps=6000, lr=1.0)
    at = [0, 1999, 2000, 3999, 4000, 5999]
    assert [lr_at(s, train) for s in at] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_momentum_without_sgd_is_refused_and_older_runs_keep_their_names() -> None:
    with pytest.raises(ValidationError, match=r"ignores train\.momentum"):
        TrainConfig(momentum=0.5)
    spec = RunSpec.model_validate(
        {"dataset": "d", "shards": "s", "data_hash": "h", "fold": 0, "method": {"name": "sansa"}})
    names = {spec.model_copy(update={"train": TrainConfig(**t)}).name
             for t in ({}, {"optimizer": "sgd"}, {"optimizer": "sgd", "momentum": 0.5})}
    assert len(names) == 3
    assert not {"optimizer", "momentum"} & _deciding(TrainConfig()).keys()
