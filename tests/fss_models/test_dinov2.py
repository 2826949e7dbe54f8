"""DINOv2 with the hub's names and position resize. Equality with the hub's features is a golden case of FSSAM."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from fss_models.backbones.dinov2 import Dinov2, build_dinov2
from fss_models.errors import FssError


@torch.no_grad()
def test_the_hubs_position_resize_is_not_the_plain_one() -> None:
    """Without the 0.1 offset features move by about 1e-3; at the native size nothing is resized."""
    model = Dinov2(width=24, blocks=2, heads=2).eval()
    torch.nn.init.normal_(model.vit.pos_embed)
    grid = model.vit.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (37, 37))
    plain = F.interpolate(grid, size=(40, 40), mode="bicubic").flatten(2).transpose(1, 2)
    ours = model.positions(40, 40)[:, 1:]
    assert ours.shape == plain.shape
    assert 1e-4 < float((ours - plain).abs().mean()) < 0.1
    assert model.positions(37, 37) is model.vit.pos_embed
    assert model(torch.randn(2, 3, 42, 56)).shape == (2, 24, 3, 4)


def test_dinov2_weights_are_loaded_strictly(tmp_path: Path) -> None:
    model = Dinov2(width=24, blocks=2, heads=2)
    good = {k: v.clone() for k, v in model.hub_state().items()}
    for change, line in (({"register_tokens": torch.zeros(1)}, "unknown 'register_tokens'"),
                         ({"cls_token": torch.zeros(3)}, "cls_token")):
        with pytest.raises(FssError, match=line):
            model.load_hub_state(good | change)
    with pytest.raises(FssError, match="lacks 'mask_token'"):
        model.load_hub_state({k: v for k, v in good.items() if k != "mask_token"})
    torch.save(good, tmp_path / "tiny.pth")
    with pytest.raises(FssError, match=r"tiny\.pth: DINOv2"):
        build_dinov2("small", str(tmp_path / "tiny.pth"))
    with pytest.raises(FssError, match="base"):
        build_dinov2("huge")


def test_sizes_of_dinov2() -> None:
    with torch.device("meta"):
        counts = {s: sum(v.numel() for v in build_dinov2(s).hub_state().values()) for s in ("base", "large")}
    assert counts == {"base": 86_580_480, "large": 304_368_640}
