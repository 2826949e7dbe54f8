"""VGG-16 with batch normalisation: the second backbone of FCP and VRP-SAM.

The layers are torchvision's (so its ImageNet file `vgg16_bn-6c64b313.pth` fits), cut into five groups of which the
first four end with their pooling. All poolings round up, and the last one is left out.
"""

from __future__ import annotations

from torch import nn

from fss_models.backbones.imagenet import ImagenetBackbone
from fss_models.backbones.torchvision_cpu import allow_cpu_torchvision

_STARTS = (0, 7, 14, 24, 34)  # where each group begins in torchvision's `features`
_END = 43  # the last pooling


class Vgg16(ImagenetBackbone):
    """VGG-16 with layer2 [N, 256, R/8, R/8], layer3 [N, 512, R/16, R/16], layer4 [N, 512, R/16, R/16] of [N, 3, R, R].

    `thinner` divides every width (golden cases use 16).
    """

    def __init__(self, *, thinner: int = 1) -> None:
        super().__init__()
        allow_cpu_torchvision()
        from torchvision.models.vgg import cfgs, make_layers

        plan: list[str | int] = [w if isinstance(w, str) else w // thinner for w in cfgs["D"]]
        layers = list(make_layers(plan, batch_norm=True))
        for pool in layers:
            if isinstance(pool, nn.MaxPool2d):
                pool.ceil_mode = True
        self.layer0, self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(*layers[a:b]) for a, b in zip(_STARTS, (*_STARTS[1:], _END), strict=True))
        self.channels = (256 // thinner, 512 // thinner, 512 // thinner)
        self.requires_grad_(False).train(False)

    def rename(self, key: str) -> str | None:
        """Translate torchvision's names, which are features.<index> and classifier."""
        head, _, rest = key.partition(".")
        index, _, leaf = rest.partition(".")
        if head == "classifier":
            return None
        if head != "features" or not index.isdigit():
            return key
        group = max(g for g, start in enumerate(_STARTS) if start <= int(index))
        return f"layer{group}.{int(index) - _STARTS[group]}.{leaf}"
