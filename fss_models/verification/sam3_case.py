"""A golden case of SAM 3: its tensors, the comparison with ours, and the detector that the case names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from fss_models.methods.sam3.build import Sam3Parts, make_parts
from fss_models.verification.figures import relative_error
from fss_models.verification.frame import CoveredErrors, GoldenCheck
from fss_models.verification.tolerances import EXACT, GOLDEN, Bound

BOUNDS = GOLDEN["sam3"]
#: beginnings of names (without those of a set or pair) whose stored values are masks of pixels
_PIXELS = ("final.crop", "final.mask", "instances.masks", "kept.masks_canvas")


class Sam3Case(CoveredErrors):
    """The tensors of one file; each has to be asked for, as an input or by comparison with ours."""

    def __init__(self, name: str, file: Path) -> None:
        super().__init__(name, load_file(file))

    def __contains__(self, key: str) -> bool:
        return key in self.want

    def given(self, key: str) -> Tensor:
        """A stored tensor that is an input."""
        self.seen.add(key)
        return self.want[key]

    def photo(self, key: str) -> np.ndarray:
        """A stored photo [H, W, 3] uint8."""
        return self.given(key).numpy()

    def compare(self, ours: Tensor, key: str, bound: Bound | None = None) -> None:
        """Compare with the stored `key`, if the case has it: integers exactly, masks by pixels, others relatively."""
        if key not in self.want:
            return
        reference = self.given(key)
        kind = ".".join(key.split(".")[-2:])
        if ours.shape != reference.shape:
            self.record(key, float("inf"), bound or EXACT)
        elif kind in _PIXELS:
            wrong = float((ours.bool() != reference.bool()).double().mean()) if reference.numel() else 0.0
            self.record(key, wrong, bound or BOUNDS["pixels"])
        elif not reference.is_floating_point():
            self.record(key, float((ours.long() != reference.long()).sum()), bound or EXACT)
        else:
            self.record(key, relative_error(ours, reference), bound or BOUNDS["forward"])

    def compare_absolute(self, ours: Tensor, key: str, bound: Bound) -> None:
        """Compare by the largest difference; nan has to be where the stored values have it."""
        if key in self.want:
            reference = self.given(key)
            if ours.shape != reference.shape or bool((ours.isnan() != reference.isnan()).any()):
                self.record(key, float("inf"), bound)
            else:
                error = (ours.double() - reference.double()).abs().nan_to_num(0)
                self.record(key, float(error.max()) if error.numel() else 0.0, bound)


def unreadable(case: str, error: Exception) -> GoldenCheck:
    """The failed check of a case whose files are damaged."""
    return GoldenCheck(case=case, quantity="files", error=float("inf"), bound=EXACT,
                       note=(str(error).strip() or type(error).__name__).splitlines()[0][:200])


def load_parts(folder: Path, case: dict[str, Any], visual: int = 0) -> Sam3Parts:
    """The case's detector with its values; `visual` is the id that stands for no class name."""
    parts = make_parts(json.loads((folder / case["config"]).read_text()), visual=visual,
                       file=folder / case["weights"])
    for name, value in case.get("overrides", {}).items():
        parts.detector.sam.get_parameter(name).fill_(value)
    return parts


class StoredWords:
    """Stands in for a tokenizer: the ids that the cases' files hold for their phrases, with start and end around."""

    def __init__(self, known: dict[str, Tensor]) -> None:
        self.known = known

    def ids(self, phrase: str) -> list[int]:
        """The ids of a phrase of the case, without start and end."""
        ids = self.known[phrase].flatten()
        return [int(i) for i in ids[1:int(ids.argmax())]]  # the end's id is the largest


def nearest(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a mask [h, w] bool to `size` (height, width) as PIL does."""
    picture = Image.fromarray(mask.byte().numpy()).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(picture)).bool()
