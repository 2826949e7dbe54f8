"""Initial random values from which the decoder quickly learns where a prompt points.

SAM's position codes are sines of random frequencies, and its decoder finds a place by comparing codes. With the usual
values (frequencies of one turn per half image, queries and keys projected at random) the codes of neighbouring pixels
differ and attention is flat. A few hundred photos then do not suffice to learn boxes: after 200 steps of 16 boxes the
held-out IoU was 28 %. Slower frequencies gave 37 %. With equal initial projections of queries and keys as well,
attention starts as nearness, and the IoU was 48 %.
"""

from __future__ import annotations

import torch
from sam2.modeling.sam.transformer import Attention

from fss_models.sam2_core.core import Sam2Core

FREQUENCY = 0.25  # factor on the usual frequencies of position codes
GAIN = 2.0  # factor on the usual projections


@torch.no_grad()
def attend_by_position(core: Sam2Core) -> None:
    """Change a random model in place: slower position codes, and a decoder whose cross-attention looks nearby."""
    core.sam.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.mul_(FREQUENCY)
    for name, module in core.sam.sam_mask_decoder.transformer.named_modules():
        if isinstance(module, Attention) and "self_attn" not in name:
            module.q_proj.weight.mul_(GAIN)
            module.k_proj.weight.copy_(module.q_proj.weight)
