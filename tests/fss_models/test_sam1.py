"""SAM v1: sizes, Meta's names, strict loading. Its arithmetic is held against the golden cases of FCP and VRP-SAM."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fss_models.errors import FssError
from fss_models.sam1.build import SIZES, Sam1, Sam1Size, build_sam1, official_name, our_name

TINY = Sam1Size(depth=2, width=8, heads=2, global_blocks=(1,), window=2, side=64, prompt_width=16, mask_channels=4,
                decoder_heads=2, decoder_mlp=8, iou_hidden=8)


def official(model: Sam1) -> dict[str, torch.Tensor]:
    return {official_name(k): v for k, v in model.state_dict().items()}


def test_published_numbers_of_parameters() -> None:
    """The figures of Meta's released models."""
    for name, count in (("vit_b", 93_735_472), ("vit_l", 312_342_832), ("vit_h", 641_090_608)):
        with torch.device("meta"):
            assert sum(p.numel() for p in Sam1(SIZES[name]).parameters()) == count


def test_names_are_metas() -> None:
    keys = set(official(Sam1(TINY)))
    assert {"image_encoder.blocks.0.mlp.lin1.weight", "mask_decoder.transformer.layers.1.mlp.lin2.bias",
            "mask_decoder.iou_prediction_head.layers.0.weight", "image_encoder.neck.3.bias",
            "image_encoder.blocks.1.attn.rel_pos_h", "prompt_encoder.not_a_point_embed.weight"} <= keys
    assert all(official_name(our_name(k)) == k for k in keys)


def test_a_file_loads_to_the_last_value(tmp_path: Path) -> None:
    source = build_sam1(TINY)
    for parameter in source.parameters():
        torch.nn.init.normal_(parameter)
    torch.save(official(source), tmp_path / "sam.pth")
    loaded = build_sam1(TINY, weights=str(tmp_path / "sam.pth"))
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in source.state_dict().items())
    pixels = torch.randn(1, 3, 64, 64)
    assert torch.equal(source.embed(pixels), loaded.embed(pixels))


def test_a_wrong_file_names_its_first_wrong_tensor(tmp_path: Path) -> None:
    state = official(Sam1(TINY))
    key = "mask_decoder.transformer.layers.0.mlp.lin1.weight"
    files = {f"lacks '{key}'": {k: v for k, v in state.items() if k != key},
             "unknown 'pixel_mean'": state | {"pixel_mean": torch.zeros(3)},
             f"'{key}' has shape": state | {key: torch.zeros(1)}}
    for i, (word, wrong) in enumerate(files.items()):
        torch.save(wrong, tmp_path / f"{i}.pth")
        with pytest.raises(FssError, match=word):
            build_sam1(TINY, weights=str(tmp_path / f"{i}.pth"))
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(FssError, match="not a SAM checkpoint"):
        build_sam1(TINY, weights=str(tmp_path / "text.pth"))
