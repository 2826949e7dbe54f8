"""Ray, MLflow, filesystems and networks around the plain PyTorch methods of `fss_models`.

What a program needs of it: `load` a bundle from anywhere, `Recipe` and `run_sweep`, `LabelRequest` and `label`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.bundles.bundle import load_predictor as load
    from pipelines.config.recipe import Recipe
    from pipelines.labelling.run import LabelRequest
    from pipelines.labelling.run import run_label_job as label
    from pipelines.sweeps.sweep import run_sweep

_PLACES = {
    "LabelRequest": ("labelling.run", "LabelRequest"), "Recipe": ("config.recipe", "Recipe"),
    "label": ("labelling.run", "run_label_job"), "load": ("bundles.bundle", "load_predictor"),
    "run_sweep": ("sweeps.sweep", "run_sweep"),
}
__all__ = ["LabelRequest", "Recipe", "label", "load", "run_sweep"]


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: commands' help must not load Ray."""
    if name not in _PLACES:
        raise AttributeError(f"module 'pipelines' has no attribute {name!r}")
    module, member = _PLACES[name]
    return getattr(import_module(f"pipelines.{module}"), member)
