"""ResNet-50 and ResNet-101 with a deep stem and dilated top: the backbone of most few-shot segmentation methods.

timm's ResNet, arranged as the methods need it: three 3x3 convolutions as stem (PSPNet's ImageNet files
`resnet50_v2.pth` and `resnet101_v2.pth`; torchvision's own weights do not fit), strides 4 / 8 / 8 / 8. timm dilates as
torchvision does: the first block of layer3 and layer4 keeps the dilation of the layer before it (1 and 2), the others
have 2 and 4 (FCP, VRP-SAM, SSP, CyCTR). PFENet, BAM and HDMNet set all blocks to 2 and 4, which gives other features
from the same weights.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from fss_models.backbones.imagenet import ImagenetBackbone
from fss_models.backbones.torchvision_cpu import allow_cpu_torchvision

Dilation = Literal["torchvision", "all_blocks"]
BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
_STEM = {"conv1": "layer0.0", "bn1": "layer0.1", "conv2": "layer0.3", "bn2": "layer0.4",
         "conv3": "layer0.6", "bn3": "layer0.7"}


class DeepStemResNet(ImagenetBackbone):
    """ResNet with layer2 [N, 512, R/8, R/8], layer3 [N, 1024, R/8, R/8], layer4 [N, 2048, R/8, R/8] of [N, 3, R, R].

    blocks     bottlenecks in layer1 ... layer4
    thinner    divides every width (golden cases use 16)
    dilation   torchvision: the first block of layer3 and layer4 keeps the dilation before it | all_blocks: 2 and 4
    signed     layer3 ends without ReLU, and there is no layer4 (SSP)
    """

    def __init__(
        self, blocks: tuple[int, ...] = BLOCKS["resnet50"], *, thinner: int = 1, dilation: Dilation = "torchvision",
        signed: bool = False,
    ) -> None:
        super().__init__()
        allow_cpu_torchvision()
        from timm.models.resnet import Bottleneck, ResNet

        widths = tuple(w // thinner for w in (64, 128, 256, 512))
        bottleneck: Any = Bottleneck  # timm's annotation asks for an instance, but the argument is the class
        net: Any = ResNet(bottleneck, blocks, num_classes=0, output_stride=8, stem_type="deep",
                          stem_width=64 // thinner, channels=widths, zero_init_last=False)
        self.layer0 = nn.Sequential(*net.conv1, net.bn1, net.act1, net.maxpool)
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4
        if dilation == "all_blocks":
            for layer, spacing in ((net.layer3, 2), (net.layer4, 4)):
                layer[0].conv2.dilation = layer[0].conv2.padding = (spacing, spacing)
        if signed:
            net.layer3[-1].act3, self.layer4 = nn.Identity(), nn.Identity()
        self.channels = (widths[1] * 4, widths[2] * 4, widths[3] * 4)
        self.requires_grad_(False).train(False)

    def rename(self, key: str) -> str | None:
        """Translate PSPNet's names, in which conv1, bn1, ... bn3 are the stem and fc is the classifier."""
        head, _, rest = key.partition(".")
        if head == "fc":
            return None
        return f"{_STEM[head]}.{rest}" if head in _STEM else key


def build_resnet(name: str, *, dilation: Dilation = "torchvision", signed: bool = False) -> DeepStemResNet:
    """Build `resnet50` or `resnet101` with random values, on the CPU."""
    return DeepStemResNet(BLOCKS[name], dilation=dilation, signed=signed)



def stem_name(key: str) -> str:
    """PSPNet's name of one of our tensors: conv1, bn1, ... bn3 for the stem."""
    for theirs, ours in _STEM.items():
        if key.startswith(f"{ours}."):
            return key.replace(ours, theirs, 1)
    return key
