"""Label files, whose pixels are values, not colours, and benchmarks' masks. People's masks: `fss_models.mask_files`."""

from __future__ import annotations

import numpy as np

from fss_models.errors import BadImage
from fss_models.mask_files import open_mask


def read_labels(data: bytes) -> np.ndarray:
    """The values of a palette or grey image, [H, W] int32. Raises `BadImage` if it is unreadable or a colour image."""
    image = open_mask(data)
    if image.mode not in ("P", "L", "1", "I", "I;16"):
        raise BadImage(f"labels must be a palette or grey image, not {image.mode}")
    return np.array(image).astype(np.int32)


def read_grey_mask(data: bytes) -> np.ndarray:
    """The mask of an image, [H, W] bool: grey level at least 128 (FSS-1000 and the cross-domain sets).

    Raises `BadImage` for an unreadable file.
    """
    return np.array(open_mask(data).convert("L")) >= 128
