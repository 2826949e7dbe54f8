"""Trained tensors kept at the steps of a grid, below the run's folder, while the number of steps is being chosen."""

from __future__ import annotations

from collections.abc import Callable

from safetensors.torch import save

from fss_models.segmenter import Segmenter
from pipelines.base.storage import Store, join
from pipelines.training.context import RunContext


def grid_store(run: RunContext) -> Store:
    """Where a job keeps the tensors of its grid."""
    return Store(join(run.folder, "grid"))


def keep_grid(run: RunContext) -> Callable[[int, Segmenter], None]:
    """A function for `fit` that keeps the trained tensors at the steps of the job's grid."""
    def keep(step: int, model: Segmenter) -> None:
        if step in run.grid:
            state = {k: v.detach().cpu().contiguous() for k, v in model.trainable_state().items()}
            grid_store(run).write_bytes(grid_tensors(step), save(state))

    return keep


def grid_tensors(step: int) -> str:
    """Name of the file with the tensors of a step."""
    return f"step-{step:07d}.safetensors"
