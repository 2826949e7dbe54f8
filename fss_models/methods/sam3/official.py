"""Meta's and transformers' weight files of SAM 3, from which a bundle is made without any training."""

from __future__ import annotations

from torch import Tensor

from fss_models.errors import FssError
from fss_models.methods.sam3.build import FULL
from fss_models.methods.sam3.model import Sam3
from fss_models.official import OfficialCheckpoint


def read(state: dict[str, Tensor], preset: str) -> OfficialCheckpoint:
    """The file is what the model is built on, which checks every key; the bundle gets its sha256 and no tensor of it.

    Raises `FssError` for another preset than the released size.
    """
    if preset != FULL:
        raise FssError(f"preset {preset!r} of method 'sam3' takes no weights", hint=f"give --preset {FULL}")
    return OfficialCheckpoint(state={}, also=("weights",))


def write(model: Sam3) -> dict[str, Tensor]:
    """Raises `FssError`: nothing of SAM 3 is trained."""
    raise FssError("method 'sam3' trains nothing that could be exported", hint="use the weight file itself")
