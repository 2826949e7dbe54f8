"""Where adapters sit in a trunk. Forward hooks add them, so the trunk's own code and parameter names stay unchanged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

Apply = Callable[[Tensor], Tensor]


def stage_blocks(trunk: Any, stages: Sequence[int]) -> list[int]:
    """Indices of the blocks of `stages` (0-based). The pooling block that opens a stage belongs to that stage.

    A trunk's `blocks` are flat and its `stage_ends` hold each stage's last block.
    """
    starts = [0, *(end + 1 for end in trunk.stage_ends[:-1])]
    return [i for s in stages for i in range(starts[s], trunk.stage_ends[s] + 1)]


def widths(trunk: Any, index: int) -> tuple[int, int]:
    """Input and output channels of a block, from Hiera's attributes or a convolution trunk's `block_widths`."""
    block = trunk.blocks[index]
    if has_attention(block):
        return int(block.dim), int(block.dim_out)
    return int(trunk.block_widths[max(index - 1, 0)]), int(trunk.block_widths[index])


def has_attention(block: nn.Module) -> bool:
    """Whether `block` is a transformer block, u + MLP(norm2(u)); otherwise it is a convolution block."""
    return hasattr(block, "norm2")


def channels_last(apply: Apply) -> Apply:
    """Wrap `apply`, which works on [N, h, w, C], so that it takes and returns maps [N, C, h, w]."""
    return lambda maps: apply(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def after(module: nn.Module, apply: Apply) -> None:
    """Replace the output y of `module` by apply(y)."""
    module.register_forward_hook(lambda _module, _args, output: apply(output))


def beside(block: Any, apply: Apply) -> None:
    """Add apply(u) to the output of a transformer block, which becomes u + MLP(norm2(u)) + apply(u)."""
    seen: list[Tensor] = []  # kept in the closure, so that the module holds no state and no graph stays alive

    def remember(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen[:] = [args[0]]

    def add(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + apply(seen.pop())

    block.norm2.register_forward_pre_hook(remember)
    block.register_forward_hook(add)


def between(block: Any, change: Apply) -> None:
    """Change u to v = u + change(u) before a transformer block's MLP; the block's output is v + MLP(norm2(v))."""
    seen: list[Tensor] = []

    def replace(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        seen[:] = [change(args[0])]
        return (args[0] + seen[0],)

    def add(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + seen.pop()

    block.norm2.register_forward_pre_hook(replace)
    block.register_forward_hook(add)
