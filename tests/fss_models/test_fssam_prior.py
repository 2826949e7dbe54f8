"""The prior's own logits, which several shots make more certain."""

from __future__ import annotations

import torch

from fss_models.methods.fssam.prior import prior_logits


def test_prior_logits_tell_object_from_surroundings_and_need_no_padding() -> None:
    features, (foreground, background) = torch.randn(2, 8, 3, 3), torch.randn(2, 2, 8)  # two shots of each
    features[:, :, 0, 0], features[:, :, 2, 2] = foreground.mean(dim=0), background.mean(dim=0)
    shots = torch.stack([foreground, background], dim=1)[None].expand(2, -1, -1, -1)  # [P, K, 2, D]
    logits = prior_logits(features, shots)
    assert bool((logits[:, 0, 0] > 0).all())
    assert bool((logits[:, 2, 2] < 0).all())
    padded = torch.cat([shots, torch.zeros(2, 3, 2, 8)], dim=1)
    torch.testing.assert_close(prior_logits(features, padded), logits)
