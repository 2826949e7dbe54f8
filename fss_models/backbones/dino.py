"""What DINOv2 and DINOv3 share: their sizes, and how their authors' files are loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from fss_models.errors import FssError
from fss_models.official import read_tensors
from fss_models.weight_files import file_sha256

SIZES = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}  # width, blocks, heads
T = TypeVar("T")


def build_dino(make: Callable[..., T], title: str, size: str, weights: str | None) -> T:
    """The encoder `title` of a size in evaluation mode, on the CPU; `weights` is a local file of its authors' format.

    Without it the values are random. Raises `FssError` for an unknown size or a file that does not fit.
    """
    if size not in SIZES:
        raise FssError(f"unknown {title} size {size!r}", hint=f"known: {', '.join(SIZES)}")
    width, blocks, heads = SIZES[size]
    model: Any = make(width=width, blocks=blocks, heads=heads, name=f"{title.lower()}_{size}")
    if weights:
        try:
            model.load_hub_state(read_tensors(weights))
        except FssError as error:
            raise error if error.where else FssError(error.what, where=weights, hint=error.hint) from error
        model.pretrained = {model.name: file_sha256(weights)}
    made: T = model.eval()
    return made
