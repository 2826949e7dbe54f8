"""DINOv3 (Siméoni et al. 2025), ViT/16 with four storage tokens and rotary positions, in timm's modules.

Meta's files (`dinov3_vitl16_pretrain_lvd1689m-8aa4cbdd.pth` and its sisters) load strictly under their own names. They
store the periods of the rotary positions rounded to bfloat16, and Meta's code uses these; timm computes them anew, by
which features move by 1e-3 of their largest value. Here the file's periods are used.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fss_models.backbones.dino import build_dino
from fss_models.backbones.torchvision_cpu import allow_cpu_torchvision
from fss_models.state_dict import check_state

PATCH = 16
_NAMES = (("reg_token", "storage_tokens"), ("rope.periods", "rope_embed.periods"),
          (".gamma_1", ".ls1.gamma"), (".gamma_2", ".ls2.gamma"))  # timm's, Meta's
_UNUSED = r"mask_token|blocks\.\d+\.attn\.qkv\.bias_mask"  # pretraining's; zeros for the key's bias, which timm lacks


class Dinov3(nn.Module):
    """A ViT/16 whose patch tokens after the final norm are a feature map.

    `pretrained` maps the name to the weight file's sha256; it is empty where the values are random.
    """

    def __init__(self, *, width: int, blocks: int, heads: int, name: str = "dinov3") -> None:
        super().__init__()
        allow_cpu_torchvision()
        from timm.models.eva import Eva

        self.name, self.width = name, width
        self.pretrained: dict[str, str] = {}
        self.vit: Any = Eva(
            img_size=224, patch_size=PATCH, embed_dim=width, depth=blocks, num_heads=heads, num_classes=0,
            qkv_bias=True, init_values=1e-5, rope_type="dinov3", rope_temperature=100, rope_rotate_half=True,
            use_rot_pos_emb=True, use_abs_pos_emb=False, num_reg_tokens=4, use_fc_norm=False, dynamic_img_size=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-5))
        vit: Any = self.vit
        vit.rope.periods.copy_(vit.rope.periods.bfloat16())  # as in the files

    def forward(self, pixels: Tensor) -> Tensor:
        """Patch tokens [N, width, H / 16, W / 16] of ImageNet-normalised [N, 3, H, W]; H and W are multiples of 16."""
        h, w = (side // PATCH for side in pixels.shape[-2:])
        tokens: Tensor = self.vit.forward_features(pixels)[:, self.vit.num_prefix_tokens :]
        return tokens.transpose(1, 2).unflatten(2, (h, w))

    def hub_state(self) -> dict[str, Tensor]:
        """All tensors that are used, under Meta's names; the bias of the keys is zero."""
        state = self.vit.state_dict() | {"rope.periods": self.vit.rope.periods}
        found = {_rename(k): v for k, v in state.items() if not k.endswith(("q_bias", "v_bias"))}
        for key in (k for k in state if k.endswith("q_bias")):
            q, v = state[key], state[key.replace("q_bias", "v_bias")]
            found[key.replace("q_bias", "qkv.bias")] = torch.cat([q, torch.zeros_like(q), v])
        return found

    def load_hub_state(self, state: dict[str, Tensor]) -> None:
        """Load tensors under Meta's names. Raises `FssError` naming the first missing, unknown or misshapen one."""
        want = self.hub_state()
        check_state(state, want, subject="DINOv3's file", hint="is it the ViT file of this size?",
                    spare=[k for k in state if re.fullmatch(_UNUSED, k)])
        back = {_rename(k): k for k in [*self.vit.state_dict(), "rope.periods"]}
        found: dict[str, Tensor] = {}
        for key in want:
            if key.endswith("qkv.bias"):
                q, _, v = state[key].chunk(3)
                found |= {key.replace("qkv.bias", "q_bias"): q, key.replace("qkv.bias", "v_bias"): v}
            else:
                found[back[key]] = state[key]
        self.vit.rope.periods.copy_(found.pop("rope.periods"))
        self.vit.load_state_dict(found)


def build_dinov3(size: str, weights: str | None = None) -> Dinov3:
    """DINOv3 `small`, `base` or `large`; `weights` and errors as for `build_dino`."""
    return build_dino(Dinov3, "DINOv3", size, weights)


def _rename(key: str) -> str:
    for timms, metas in _NAMES:
        key = key.replace(timms, metas)
    return key
