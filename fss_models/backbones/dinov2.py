"""DINOv2 (Oquab et al. 2023) without registers, in timm's blocks and with the hub's weights and position resize.

The hub's files (`dinov2_vitb14_pretrain.pth` and its sisters) and timm's modules use the same tensor names, but timm
resizes the position embedding to a target size with antialias, the hub by the scale (patches + 0.1) / 37 without.
The features of the two differ by about 1e-3; this module computes the hub's.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fss_models.backbones.dino import build_dino
from fss_models.backbones.torchvision_cpu import allow_cpu_torchvision
from fss_models.state_dict import check_state

_OFFSET = 0.1  # the hub adds it to the patch count before dividing


class Dinov2(nn.Module):
    """A ViT/14 whose patch tokens are a feature map.

    `pretrained` maps the name to the weight file's sha256; it is empty where the values are random.
    """

    def __init__(
        self, *, width: int, blocks: int, heads: int, mlp_ratio: float = 4.0, native: int = 518, name: str = "dinov2"
    ) -> None:
        super().__init__()
        self.name = name
        allow_cpu_torchvision()
        from timm.models.vision_transformer import VisionTransformer

        self.width = width
        self.patch = 14
        self.pretrained: dict[str, str] = {}
        self.vit: Any = VisionTransformer(
            img_size=native, patch_size=self.patch, embed_dim=width, depth=blocks, num_heads=heads,
            mlp_ratio=mlp_ratio, init_values=1.0, num_classes=0)
        self.register_buffer("mask_token", torch.zeros(1, width))  # the hub's files hold it; it is not used here

    def forward(self, pixels: Tensor, *, norm: bool = True) -> Tensor:
        """Patch tokens [N, width, H / 14, W / 14] of ImageNet-normalised [N, 3, H, W]; H and W are multiples of 14.

        Without `norm` they are the last block's output, before the final normalisation (the hub's `x_prenorm`).
        """
        patches = self.vit.patch_embed.proj(pixels)
        h, w = patches.shape[-2:]
        tokens = torch.cat([self.vit.cls_token.expand(len(pixels), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        tokens = self.vit.blocks(tokens + self.positions(h, w))
        tokens = self.vit.norm(tokens) if norm else tokens
        found: Tensor = tokens[:, 1:].transpose(1, 2).unflatten(2, (h, w))
        return found

    def positions(self, h: int, w: int) -> Tensor:
        """Position embeddings [1, 1 + h * w, width]: the class token's, then the grid's, resized as the hub does it."""
        table: Tensor = self.vit.pos_embed
        side = int((table.shape[1] - 1) ** 0.5)
        if (h, w) == (side, side):
            return table
        grid = table[:, 1:].float().transpose(1, 2).unflatten(2, (side, side))
        scale = ((h + _OFFSET) / side, (w + _OFFSET) / side)
        grid = F.interpolate(grid, scale_factor=scale, mode="bicubic")
        return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)

    def hub_state(self) -> dict[str, Tensor]:
        """All tensors under the hub's names."""
        return {k.removeprefix("vit."): v for k, v in self.state_dict().items()}

    def load_hub_state(self, state: dict[str, Tensor]) -> None:
        """Load tensors under the hub's names. Raises `FssError` naming the first missing, unknown or misshapen one."""
        check_state(state, self.hub_state(), subject="DINOv2's file",
                    hint="is it the file of this size, without registers?")
        self.load_state_dict({k if k == "mask_token" else f"vit.{k}": v for k, v in state.items()})


def build_dinov2(size: str, weights: str | None = None) -> Dinov2:
    """DINOv2 `small`, `base` or `large`; `weights` and errors as for `build_dino`."""
    return build_dino(Dinov2, "DINOv2", size, weights)
