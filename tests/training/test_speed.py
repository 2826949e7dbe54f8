"""Speed and peak memory of bundles, measured on real models at the debug preset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fss_models import registry
from pipelines.bundle import save_bundle
from pipelines.data.schema import EpisodeSample, Sample
from pipelines.training.speed import Peak, measure_speed


def sample(number: int) -> Sample:
    rng = np.random.default_rng(number)
    mask = np.zeros((60, 80), dtype=bool)
    mask[10:30, 20:50] = True
    return Sample(image_id=number, image=rng.integers(0, 255, (60, 80, 3), dtype=np.uint8), mask=mask, ignore=~mask)


def test_every_figure_is_measured(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    for name in ("prior", "sansa"):
        save_bundle(str(tmp_path / name), registry.build(name, "debug"))
    samples = [EpisodeSample(class_id=1, class_name="x", references=[sample(2 * i)], targets=[sample(2 * i + 1)])
               for i in range(3)]
    found = measure_speed({n: str(tmp_path / n) for n in ("prior", "sansa")}, samples, device="cpu", batch=2, repeats=2)
    assert list(found) == ["prior", "sansa"]
    for figures in found.values():
        assert figures["seconds"] > 0
        assert figures["images_per_s"] > 0
        assert figures["batch"] == 2
        assert figures["queries"] == 5, "three episodes twice, less the first"
        assert figures["device"] == "cpu"
    assert found["prior"]["bundle_id"] != found["sansa"]["bundle_id"]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not tell the peak")
def test_the_peak_is_of_its_own_time() -> None:
    before = np.ones(60_000_000, dtype=np.uint8)
    peak = Peak("cpu")
    assert peak.bytes() < 30_000_000, "what was held before does not count"
    held = np.ones(80_000_000, dtype=np.uint8)
    del held
    assert 70_000_000 < peak.bytes() < 120_000_000, "freed since, and counted"
    assert before[0] == 1
