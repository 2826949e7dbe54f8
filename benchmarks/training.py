"""Short trainings of a method, as `fss train` runs them."""

from __future__ import annotations

from typing import Any


def short_spec(method: str, preset: str, shards: str, *, seed: int, **train: Any) -> Any:
    """The `RunSpec` of a short training on fold 0 of shards. train: keys of a recipe's `train`."""
    from pipelines.config.method import MethodConfig
    from pipelines.config.run import RunSpec
    from pipelines.config.train import TrainConfig
    from pipelines.data.shardset import Shards

    return RunSpec(dataset="photos", shards=shards, data_hash=Shards(shards).manifest.content_hash, fold=0, seed=seed,
                   method=MethodConfig(name=method, preset=preset), train=TrainConfig(lr=1e-4, **train))


def train_rows(spec: Any, runs: str, *, threads: int, gpus: int = 0) -> list[dict[str, float]]:
    """Train a run through Ray Train and return the rows of its history without the first window."""
    from pipelines.base.storage import Store
    from pipelines.training.context import RunContext
    from pipelines.training.worker import train_run

    run = RunContext(spec=spec, runs=runs, threads=threads, gpus=gpus)
    train_run(run)
    rows: list[dict[str, float]] = Store(run.folder).read_json("history.json")
    return rows[1:]
