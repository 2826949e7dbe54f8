"""Few-shot segmentation methods in plain PyTorch: one contract, one registry, no Ray.

To predict: `load`. To build or write methods: `list_methods`, `build`, `Segmenter`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fss_models.bundle import BundleInfo
    from fss_models.errors import FssError
    from fss_models.instances import ObjectMask
    from fss_models.predictor import MaskSettings, MemorisedSupports, PhotoMask, Predictor, load
    from fss_models.registry import build, list_methods, register_method
    from fss_models.segmenter import Segmenter

_PLACES = {
    "BundleInfo": "bundle",
    "FssError": "errors",
    "MaskSettings": "predictor",
    "MemorisedSupports": "predictor",
    "ObjectMask": "instances",
    "PhotoMask": "predictor",
    "Predictor": "predictor",
    "Segmenter": "segmenter",
    "build": "registry",
    "list_methods": "registry",
    "load": "predictor",
    "register_method": "registry",
}
__all__ = [
    "BundleInfo",
    "FssError",
    "MaskSettings",
    "MemorisedSupports",
    "ObjectMask",
    "PhotoMask",
    "Predictor",
    "Segmenter",
    "build",
    "list_methods",
    "load",
    "register_method",
]


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: `import fss_models` alone loads neither torch nor a model."""
    if name not in _PLACES:
        raise AttributeError(f"module 'fss_models' has no attribute {name!r}")
    return getattr(import_module(f"fss_models.{_PLACES[name]}"), name)
