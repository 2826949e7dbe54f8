"""SANSA at its real size on a CPU: the checkpoint's keys, and one episode at 1024 pixels. Minutes, so with the slow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fss_models import registry
from fss_models.prompts import mask_prompt
from fss_models.sam2_core.build import OBJECT_SCORE_KEYS, build_sam2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_large_loads_metas_layout_and_runs_an_episode(tmp_path: Path) -> None:
    file = tmp_path / "sam2_hiera_large.pt"
    torch.save({"model": build_sam2("large", object_scores=True).state_dict()}, file)
    names = torch.load(file, weights_only=True, mmap=True)["model"].keys()
    model = registry.build("sansa", "large", {"data_side": 640}, weights=str(file)).eval()
    file.unlink()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert (len(trained), sum(p.numel() for p in trained)) == (240, 9_898_385)
    assert sum(p.numel() for p in model.parameters()) == 234_196_162
    held = {n.removeprefix("core.sam.") for n in model.state_dict()}
    assert names - held == OBJECT_SCORE_KEYS
    assert len(OBJECT_SCORE_KEYS) == 8
    assert all(".adapter." in n for n in held - names)
    rng = np.random.default_rng(0)
    mask = np.zeros((480, 640), bool)
    mask[100:300, 200:420] = True
    with torch.inference_mode():
        features = model.encode(model.prepare([rng.integers(0, 256, (480, 640, 3), dtype=np.uint8) for _ in range(2)]))
        memory = model.memorise(features, model.collate([[mask_prompt(mask)]], features.sizes))
        prediction = model.segment(memory, features, torch.tensor([[0, 1]]))
    assert prediction.logits.shape == (1, 256, 256)
    assert bool(prediction.logits.isfinite().all())
