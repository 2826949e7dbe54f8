"""Speed and peak memory of bundles, measured on real models at the debug preset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fss_models import registry
from pipelines.base.outcome import Outcome
from pipelines.base.storage import Store
from pipelines.bundles.bundle import save_bundle
from pipelines.config.evaluate import EvalConfig
from pipelines.config.method import MethodConfig
from pipelines.config.recipe import Recipe
from pipelines.config.run import RunSpec, eval_digest
from pipelines.config.sweep import SweepConfig
from pipelines.data.schema import EpisodeSample, Sample
from pipelines.evaluation.results import RunResult
from pipelines.evaluation.speed import MemoryPeak, measure_speed
from pipelines.selection.choose import _latency
from pipelines.sweeps.matrix import MatrixCell
from pipelines.sweeps.sweep import _idle_latency


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


class Measurer:
    """Stands in for Ray; the measured seconds are the number of the measurement."""

    count = 0

    def remote(self, call: Any, bundles: Any = None, *rest: Any) -> Any:
        if bundles is None:
            return self
        self.count += 1
        return Outcome({label: {"bundle_id": "same", "seconds": self.count} for label in bundles})

    def options(self, **asked: float) -> Measurer:
        return self

    def get(self, found: Any) -> Any:
        return found


def test_speed_is_measured_again_when_its_conditions_change(tmp_path: Path) -> None:
    """Otherwise figures of another number of supports, batch or device would be shown, and break ties."""
    ray, method = Measurer(), MethodConfig(name="prior")
    spec = RunSpec(dataset="d", shards="s", data_hash="h", fold=0, method=method)

    def seconds(shots: int = 1, batch: int = 4, gpus: float = 0.0) -> int:
        recipe = Recipe(out=str(tmp_path), methods=[method], eval=EvalConfig(shots=shots, batch=batch),
                        sweep=SweepConfig(gpus_per_run=gpus))
        done = RunResult(run="r", spec=spec, eval_digest=eval_digest(recipe.eval), bundle="b", bundle_id="same")
        _idle_latency(MatrixCell("", recipe), [done], ray)
        other = done.model_copy(update={"eval_digest": "other"})
        assert _latency(Store(str(tmp_path)), "latency.json", [other]) == {}, "a table of another evaluation"
        return int(_latency(Store(str(tmp_path)), "latency.json", [done])["prior"]["seconds"])

    assert [seconds(), seconds(), seconds(shots=5), seconds(shots=5), seconds(shots=5, batch=8),
            seconds(shots=5, batch=8, gpus=1.0), seconds()] == [1, 1, 2, 2, 3, 4, 5]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not tell the peak")
def test_the_peak_is_of_its_own_time() -> None:
    before = np.ones(60_000_000, dtype=np.uint8)
    peak = MemoryPeak("cpu")
    assert peak.bytes() < 30_000_000, "what was held before does not count"
    held = np.ones(80_000_000, dtype=np.uint8)
    del held
    assert 70_000_000 < peak.bytes() < 120_000_000, "freed since, and counted"
    assert before[0] == 1
