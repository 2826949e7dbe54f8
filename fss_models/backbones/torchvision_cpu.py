"""Makes `import torchvision` (and so `import timm`) work beside a torch that has no CUDA.

Some package indexes hold only CUDA builds of torchvision; beside a CPU torch their operators are missing and the
import fails. Declaring the two schemas that are looked up at import is enough: we call neither operator.
"""

from __future__ import annotations

import torch

_SCHEMAS = {
    "torchvision::nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "torchvision::qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def allow_cpu_torchvision() -> None:
    """Declare the missing operators, once, only where torch was built without CUDA and torchvision with it."""
    if torch.version.cuda is not None:
        return
    try:
        import torchvision  # noqa: F401
    except (RuntimeError, AttributeError):
        for name, schema in _SCHEMAS.items():
            if not hasattr(torch.ops.torchvision, name.partition("::")[2]):
                torch.library.define(name, schema)
