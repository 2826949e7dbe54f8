"""Where adapters sit in a trunk. All of them go in by hooks: the trunk's own code and names stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

Apply = Callable[[Tensor], Tensor]


def stage_blocks(trunk: Any, stages: Sequence[int]) -> list[int]:
    """Indices of the blocks of `stages` (0-based); the first, pooling block of a stage belongs to it.

    A trunk's `blocks` are flat and its `stage_ends` hold each stage's last block.
    """
    starts = [0, *(end + 1 for end in trunk.stage_ends[:-1])]
    return [i for s in stages for i in range(starts[s], trunk.stage_ends[s] + 1)]


def widths(trunk: Any, index: int) -> tuple[int, int]:
    """(input, output) channels of a block: Hiera's attributes, or a convolution trunk's `block_widths`."""
    block = trunk.blocks[index]
    if has_attention(block):
        return int(block.dim), int(block.dim_out)
    return int(trunk.block_widths[max(index - 1, 0)]), int(trunk.block_widths[index])


def has_attention(block: nn.Module) -> bool:
    """Whether it is a transformer block, u + MLP(norm2(u)); otherwise a convolution block."""
    return hasattr(block, "norm2")


def channels_last(apply: Apply) -> Apply:
    """For maps [N, C, h, w]: what `apply` does to [N, h, w, C]."""
    return lambda maps: apply(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def after(module: nn.Module, apply: Apply) -> None:
    """The module's output y becomes apply(y)."""
    module.register_forward_hook(lambda _module, _args, output: apply(output))


def beside(block: Any, apply: Apply) -> None:
    """A transformer block's output becomes u + MLP(norm2(u)) + apply(u)."""
    seen: list[Tensor] = []  # in the closure: no module state, no graph kept alive

    def remember(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen[:] = [args[0]]

    def add(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + apply(seen.pop())

    block.norm2.register_forward_pre_hook(remember)
    block.register_forward_hook(add)


def between(block: Any, change: Apply) -> None:
    """In a transformer block u becomes v = u + change(u) before the MLP: the output is v + MLP(norm2(v))."""
    seen: list[Tensor] = []

    def replace(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        seen[:] = [change(args[0])]
        return (args[0] + seen[0],)

    def add(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + seen.pop()

    block.norm2.register_forward_pre_hook(replace)
    block.register_forward_hook(add)
