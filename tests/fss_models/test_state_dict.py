"""A state dict is loaded whole or refused by its first wrong name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fss_models.errors import FssError
from fss_models.state_dict import check_state, load_state


def test_a_state_that_fits_is_loaded_and_names_may_be_left_out_or_spared() -> None:
    source, copy = nn.Linear(2, 3), nn.Linear(2, 3)
    load_state(copy, source.state_dict())
    assert torch.equal(copy.weight, source.weight)
    load_state(copy, {"weight": torch.zeros(3, 2)}, optional={"bias"})
    assert torch.equal(copy.bias, source.bias)
    check_state({"a": torch.zeros(1), "b": torch.zeros(2)}, {"a": torch.Size([1])}, spare={"b"})


@pytest.mark.parametrize(("change", "line"), [
    ({"weight": None}, "net.pth: lacks 'weight' (is it this one?)"),
    ({"more": torch.zeros(1)}, "net.pth: has unknown 'more' (is it this one?)"),
    ({"bias": torch.zeros(2)}, "net.pth: 'bias' has shape (2,), the model needs (3,) (is it this one?)"),
])
def test_the_first_wrong_name_is_one_line(change: dict[str, torch.Tensor | None], line: str) -> None:
    net = nn.Linear(2, 3)
    state = {k: v for k, v in (net.state_dict() | change).items() if v is not None}
    with pytest.raises(FssError) as caught:
        load_state(net, state, where="net.pth", hint="is it this one?")
    assert str(caught.value) == line
