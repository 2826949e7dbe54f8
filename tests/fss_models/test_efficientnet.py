"""The nano trunk: timm's network with its normalisations and scales folded into the convolutions."""

from __future__ import annotations

import torch

from fss_models.backbones.efficientnet import SCALES, EfficientNetTrunk, _load_by_position, _timm_model


def test_maps_are_the_published_ones_at_unit_scale() -> None:
    """Would catch a fold that misses a bias, a skip connection or the next stage's first convolution."""
    net = _timm_model().eval()
    _load_by_position(net)
    seen: dict[int, torch.Tensor] = {}
    for stage, group in enumerate((1, 2, 4, 6)):
        net.blocks[group].register_forward_hook(lambda _, __, out, stage=stage: seen.__setitem__(stage, out))
    x = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        net.forward_features(x)
        maps = EfficientNetTrunk()(x)
    for stage, (found, scale) in enumerate(zip(maps, SCALES, strict=True)):
        torch.testing.assert_close(found * scale, seen[stage], rtol=1e-3, atol=1e-3 * float(seen[stage].std()))
