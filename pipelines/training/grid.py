"""Trained tensors at the steps of a grid, stored below the run's folder while the number of steps is being chosen."""

from __future__ import annotations

from collections.abc import Callable

from safetensors.torch import save

from fss_models.segmenter import Segmenter
from pipelines.base.storage import Store, join
from pipelines.training.context import RunContext


def grid_store(run: RunContext) -> Store:
    """The folder with the tensors of a run's grid."""
    return Store(join(run.folder, "grid"))


def make_grid_writer(run: RunContext) -> Callable[[int, Segmenter], None]:
    """A function for `fit` (`on_step`) that stores the trained tensors at the steps of the run's grid."""
    def write(step: int, model: Segmenter) -> None:
        if step in run.grid:
            state = {k: v.detach().cpu().contiguous() for k, v in model.trainable_state().items()}
            grid_store(run).write_bytes(grid_file(step), save(state))

    return write


def grid_file(step: int) -> str:
    """Name of the file with the trained tensors of a step."""
    return f"step-{step:07d}.safetensors"
