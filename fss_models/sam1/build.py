"""SAM v1, built from installed parts, with Meta's own weight files (`sam_vit_h_4b8939.pth` and its like).

The image encoder is timm's `VisionTransformerSAM`, with the layer-normalisation epsilon 1e-6 of the original (timm's
`samvit_*` entries take 1e-5). Prompt encoder and mask decoder are the sam2 package's, which without high-resolution
features and object scores compute what version 1 computed; only the names of two linear layers differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fss_models.backbones.torchvision_cpu import allow_cpu_torchvision
from fss_models.errors import FssError
from fss_models.state_dict import check_state

PATCH = 16
_ENCODER_RENAMES = ((".mlp.lin1.", ".mlp.fc1."), (".mlp.lin2.", ".mlp.fc2."))
_DECODER_RENAMES = ((".mlp.lin1.", ".mlp.layers.0."), (".mlp.lin2.", ".mlp.layers.1."))


@dataclass(frozen=True, kw_only=True)
class Sam1Size:
    """Dimensions of one size. `side` is the square input in pixels, `prompt_width` the width of embedding and prompts.

    depth, width, heads, window, global_blocks   of the image encoder
    mask_channels                                of the prompt encoder's mask branch
    decoder_heads, decoder_mlp, iou_hidden       of the mask decoder
    """

    depth: int
    width: int
    heads: int
    global_blocks: tuple[int, ...]
    window: int = 14
    side: int = 1024
    prompt_width: int = 256
    mask_channels: int = 16
    decoder_heads: int = 8
    decoder_mlp: int = 2048
    iou_hidden: int = 256


SIZES = {
    "vit_b": Sam1Size(depth=12, width=768, heads=12, global_blocks=(2, 5, 8, 11)),
    "vit_l": Sam1Size(depth=24, width=1024, heads=16, global_blocks=(5, 11, 17, 23)),
    "vit_h": Sam1Size(depth=32, width=1280, heads=16, global_blocks=(7, 15, 23, 31)),
}


class Sam1(nn.Module):
    """The three parts of SAM v1: `image_encoder`, `prompt_encoder`, `mask_decoder`."""

    def __init__(self, size: Sam1Size) -> None:
        super().__init__()
        grid = (size.side // PATCH,) * 2
        self.size = size
        self.image_encoder = _image_encoder(size)
        self.prompt_encoder = _prompt_encoder(size, grid)
        self.mask_decoder = _mask_decoder(size)

    def embed(self, pixels: Tensor) -> Tensor:
        """Image embedding [N, prompt_width, side/16, side/16] of ImageNet-normalised [N, 3, side, side]."""
        found: Tensor = self.image_encoder.forward_features(pixels)
        return found


def build_sam1(size: Sam1Size, *, weights: str | None = None) -> Sam1:
    """Build SAM v1 on the CPU, in evaluation mode; `weights`, a local file of Meta's, is loaded strictly.

    Raises `FssError` naming the first missing, unknown or misshapen tensor.
    """
    if not weights:
        return Sam1(size).eval()
    with torch.device("meta"):  # the values come from the file: drawing 600 million first would take a while
        model = Sam1(size)
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is no checkpoint
        raise FssError("is not a SAM checkpoint", where=weights) from error
    load_official(model, state, where=weights, assign=True)
    return model.eval()


def load_official(model: Sam1, state: dict[str, Tensor], *, where: str = "", assign: bool = False) -> None:
    """Load tensors under Meta's names. Raises `FssError` naming the first missing, unknown or misshapen tensor."""
    want = {official_name(key): value for key, value in model.state_dict().items()}
    check_state(state, want, where=where, hint="is it the SAM v1 file of this preset?")
    model.load_state_dict({our_name(key): value for key, value in state.items()}, assign=assign)


def our_name(key: str) -> str:
    """Translate Meta's tensor name to ours."""
    return _replace(key, forward=True)


def official_name(key: str) -> str:
    """Translate our tensor name to Meta's."""
    return _replace(key, forward=False)


def _replace(key: str, *, forward: bool) -> str:
    renames = _ENCODER_RENAMES if key.startswith("image_encoder.") else _DECODER_RENAMES
    if not key.startswith(("image_encoder.blocks.", "mask_decoder.transformer.")):
        return key
    for theirs, ours in renames:
        key = key.replace(theirs, ours) if forward else key.replace(ours, theirs)
    return key


def _image_encoder(size: Sam1Size) -> Any:
    allow_cpu_torchvision()
    from timm.models.vision_transformer_sam import VisionTransformerSAM

    norm: Any = partial(nn.LayerNorm, eps=1e-6)
    return VisionTransformerSAM(
        img_size=size.side, patch_size=PATCH, embed_dim=size.width, depth=size.depth, num_heads=size.heads,
        num_classes=0, use_rel_pos=True, window_size=size.window, global_attn_indexes=size.global_blocks,
        neck_chans=size.prompt_width, norm_layer=norm,
    )


def _prompt_encoder(size: Sam1Size, grid: tuple[int, int]) -> Any:
    from sam2.modeling.sam.prompt_encoder import PromptEncoder

    return PromptEncoder(embed_dim=size.prompt_width, image_embedding_size=grid,
                         input_image_size=(size.side, size.side), mask_in_chans=size.mask_channels)


def _mask_decoder(size: Sam1Size) -> Any:
    from sam2.modeling.sam.mask_decoder import MaskDecoder
    from sam2.modeling.sam.transformer import TwoWayTransformer

    transformer = TwoWayTransformer(depth=2, embedding_dim=size.prompt_width, num_heads=size.decoder_heads,
                                    mlp_dim=size.decoder_mlp)
    return MaskDecoder(transformer_dim=size.prompt_width, transformer=transformer, iou_head_depth=3,
                       iou_head_hidden_dim=size.iou_hidden)
