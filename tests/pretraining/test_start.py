"""The random values that a pretraining begins from."""

from __future__ import annotations

import torch
from sam2.modeling.sam.transformer import Attention

from fss_models.presets import RANDOM
from fss_models.pretraining.start import FREQUENCY, attend_by_position
from fss_models.sam2_core.build import build_sam2
from fss_models.sam2_core.core import Sam2Core


def _core() -> Sam2Core:
    torch.manual_seed(0)
    return Sam2Core(build_sam2("debug", weights=RANDOM))


def _attention_at(core: Sam2Core, where: float) -> torch.Tensor:
    """Attention [64] of a token at `where` (of the side, on the diagonal) to an 8 x 8 grid that has positions alone."""
    layer = core.sam.sam_prompt_encoder.pe_layer
    grid = layer((8, 8)).flatten(1).T[None]
    token = layer.forward_with_coords(torch.tensor([[[where, where]]]) * 64, (64, 64))
    attend = core.sam.sam_mask_decoder.transformer.final_attn_token_to_image
    q, k = attend.q_proj(token), attend.k_proj(grid)
    heads = attend.num_heads
    q, k = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k))
    return (q @ k.transpose(-1, -2) / k.shape[-1] ** 0.5).softmax(-1).mean(1).flatten()


def test_attention_begins_as_nearness() -> None:
    core = _core()
    attend_by_position(core)
    for where in (1.5 / 8, 5.5 / 8):
        cell = int(where * 8)
        nearby = [r * 8 + c for r in range(cell - 1, cell + 2) for c in range(cell - 1, cell + 2)]
        share = _attention_at(core, where)[nearby].sum()
        assert share > 1.2 * len(nearby) / 64, f"the 9 cells around {where} get {share:.2f}"


def test_only_the_decoder_and_the_codes_change() -> None:
    core, plain = _core(), _core()
    attend_by_position(core)
    before, after = plain.sam.state_dict(), core.sam.state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed
    assert all(k.startswith(("sam_mask_decoder.transformer", "sam_prompt_encoder.pe_layer")) for k in changed)
    codes = "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    assert torch.equal(after[codes], before[codes] * FREQUENCY)
    for name, module in core.sam.sam_mask_decoder.transformer.named_modules():
        if isinstance(module, Attention):
            assert torch.equal(module.q_proj.weight, module.k_proj.weight) == ("self_attn" not in name)
