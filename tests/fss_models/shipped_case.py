"""Shipped weights with random values in a folder of their own: what the real ones look like, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fss_models.presets import RANDOM
from fss_models.sam2_core.build import TRUNK, build_sam2
from fss_models.shipped.files import Provenance, TrainingData, write_weights

PHOTOS = ("00112233445566aa", "00112233445566bb")


def random_state(seed: int = 0) -> dict[str, Tensor]:
    """The tensors of nano without its trunk, drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sam = build_sam2("nano", weights=RANDOM, object_scores=True)
    return {k: v for k, v in sam.state_dict().items() if not k.startswith(TRUNK)}


def ship_random(folder: Path, seed: int = 0, **changes: Any) -> Provenance:
    """Write nano.safetensors and nano.json with random values into `folder`."""
    about = {"data": (TrainingData(name="photos", licence="research use", photos=PHOTOS),), "recipe": {"steps": 0},
             "commit": "none", "seeds": (seed,), "steps": 0, "seconds": 0.0, "hardware": "none",
             "quality": {}, "licence": "random values for a test", "created": "2026-01-01"}
    return write_weights("nano", random_state(seed), folder=folder, **(about | changes))
