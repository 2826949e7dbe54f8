"""Expected lengths of runs: from earlier runs of the kind, else of the method, else of any."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.config.evaluate import EvalConfig
from pipelines.config.method import MethodConfig
from pipelines.config.run import RunSpec
from pipelines.config.train import SelectConfig, TrainConfig
from pipelines.evaluation.results import RunResult
from pipelines.sweeps.lengths import RunLengths, RunWork

EVAL = EvalConfig(episodes=50)


def spec(method: str = "sansa", *, config: dict[str, object] | None = None, **train: object) -> RunSpec:
    return RunSpec(dataset="d", shards="s", data_hash="h", fold=0, train=TrainConfig.model_validate(train),
                   method=MethodConfig(name=method, preset="debug", config=config or {}))


def finished(one: RunSpec, *, step_s: float, episode_s: float) -> RunResult:
    return RunResult(run=one.name, spec=one, eval_digest="e", episodes=50, train_s=step_s * one.steps,
                     details={"seconds": episode_s * 50})


def test_work_counts_every_stage() -> None:
    chosen = spec(steps=60, selection="base-holdout", select=SelectConfig(points=3, episodes=20))
    assert RunWork.of(chosen, EVAL) == RunWork(selecting=60, choosing=60, training=60, scoring=50)
    assert RunWork.of(spec(steps=60, selection="published"), EVAL) == RunWork(choosing=250, training=60, scoring=50)
    assert RunWork.of(spec("prior", steps=60, selection="base-holdout"), EVAL) == RunWork(scoring=50)
    assert RunWork.of(spec(steps=60), EVAL.model_copy(update={"draws": 2})) == RunWork(training=60, scoring=100)


def test_measured_rates_make_the_estimate_and_are_kept(tmp_path: Path) -> None:
    lengths = RunLengths(str(tmp_path))
    one, twice = spec(steps=100), spec(steps=200)
    assert lengths.expect(twice, RunWork.of(twice, EVAL)) > lengths.expect(one, RunWork.of(one, EVAL))
    for _ in range(40):
        lengths.learn(finished(one, step_s=0.5, episode_s=0.2), wall_s=67.0)
    expected = lengths.expect(one, RunWork.of(one, EVAL))
    assert expected == pytest.approx(67.0, abs=0.5), "100 x 0.5 + 50 x 0.2 + 7 to start"
    lengths.save()
    again = RunLengths(str(tmp_path))
    longer = spec(steps=300)
    assert again.expect(longer, RunWork.of(longer, EVAL)) == pytest.approx(167.0, abs=0.5)


def test_the_nearest_kind_decides(tmp_path: Path) -> None:
    """Another configuration of a method is like the method, another method like the mean of all."""
    lengths = RunLengths(str(tmp_path))
    for method, step_s in (("sansa", 0.5), ("fcp", 2.0)):
        for _ in range(40):
            lengths.learn(finished(spec(method, steps=100), step_s=step_s, episode_s=0.1))
    assert lengths.rates(spec(config={"factor": 0.8}))["step_s"] == pytest.approx(0.5, abs=0.01)
    assert lengths.rates(spec("fssam"))["step_s"] == pytest.approx(1.25, abs=0.01)
    slow = spec(config={"factor": 0.8}, steps=100)
    for _ in range(40):
        lengths.learn(finished(slow, step_s=4.0, episode_s=0.1))
    assert lengths.rates(slow)["step_s"] == pytest.approx(4.0, abs=0.01)
    assert lengths.rates(spec())["step_s"] == pytest.approx(0.5, abs=0.01)
