"""One run on Ray Train: `train_run` is the driver, `train_worker` each of its workers."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from pipelines.base.outcome import Outcome
from pipelines.base.storage import Store
from pipelines.base.version import code_version
from pipelines.training.context import BaseRun, RunContext
from pipelines.training.state import History
from pipelines.training.task import OpenTask, TrainingTask, WorkerRank

KEPT_CHECKPOINTS = 2
CHECKPOINTS = "fss-checkpoint-"  # prefix of local checkpoint folders before their upload; the process id follows


def train_run(run: BaseRun, open_task: OpenTask | None = None) -> Any:
    """Train a run to its end, from its last checkpoint if it has one. Returns the result of its task's `finish`.

    `open_task` is called on every worker; without it `run` is a `RunContext`, and its bundle is written. Raises
    `FssError` for a mistake that another try would repeat, and Ray's own error after `retries` failures.
    """
    import ray.train.torch

    train: Any = ray.train  # at run time this is Train v2; type checkers see v1
    filesystem, root = Store(run.runs).pyarrow()
    workers = run.spec.train.workers
    least = run.spec.train.min_workers or workers
    resources = {"CPU": run.cpus / workers} | ({"GPU": run.gpus / workers} if run.gpus else {})
    trainer = train.torch.TorchTrainer(
        train_worker,
        train_loop_config={"run": run, "open_task": open_task or open_run},
        scaling_config=train.ScalingConfig(
            num_workers=(least, workers) if least < workers else workers, use_gpu=run.gpus > 0,
            resources_per_worker=resources),
        run_config=train.RunConfig(
            name=run.spec.name, storage_path=root, storage_filesystem=filesystem,
            # Ray still counts on a lost machine for a while: an elastic run then tries again with those that are left.
            failure_config=train.FailureConfig(max_failures=run.retries,
                                               controller_failure_limit=run.retries if least < workers else 0),
            checkpoint_config=train.CheckpointConfig(num_to_keep=KEPT_CHECKPOINTS),
            logging_config=train.LoggingConfig(log_level="ERROR")),
    )
    return (trainer.fit().return_value or Outcome()).result()


def train_worker(config: dict[str, Any]) -> Outcome[Any]:
    """Train as one worker of a run. A mistake, which a retry would repeat, is returned.

    With several workers it is raised: Ray Train returns the first worker's value alone, and the other workers would
    wait for ever.
    """
    import ray.train
    import ray.train.torch
    import torch

    run: BaseRun = config["run"]
    torch.set_num_threads(run.threads)
    clear_checkpoints(Path(tempfile.gettempdir()))
    context = ray.train.get_context()
    worker = WorkerRank(rank=context.get_world_rank(), world=context.get_world_size(),
                        device=str(ray.train.torch.get_device()))
    if worker.world == 1:
        return Outcome.of(_train, run, config["open_task"], worker)
    return Outcome(_train(run, config["open_task"], worker))


def _train(run: BaseRun, open_task: OpenTask, worker: WorkerRank) -> Any:
    import ray.train

    from pipelines.training.loop import optimise

    task = open_task(run, worker)
    checkpoint = ray.train.get_checkpoint()
    with checkpoint.as_directory() if checkpoint else nullcontext() as folder:
        history = optimise(task, worker=worker, resume=Path(folder) if folder else None, save=_report,
                           log_row=lambda step, row: _log(run, worker.rank, step, row))
    if worker.rank:
        return None
    Store(run.folder).write_json("history.json", history.rows)
    return task.finish(history)


def open_run(run: RunContext, worker: WorkerRank) -> TrainingTask:
    """The task of a run: its model and its episodes. At the end its bundle is written, unless it has a grid."""
    from pipelines.bundles.weights import build_model
    from pipelines.data.collate import square_side
    from pipelines.data.folds import FoldData
    from pipelines.training.base_learner import give_base_learner
    from pipelines.training.grid import make_grid_writer
    from pipelines.training.loop import episode_task

    spec = run.spec
    data = FoldData.of(spec)
    model = build_model(spec.method, seed=spec.seed)
    give_base_learner(run, model, data)
    features = _open_features(run, model)
    side = square_side(model, decoded=features is None) if spec.train.augment == "none" else 0

    def finish(history: History) -> None:
        if not run.grid:
            write_bundle(run, model, data, train_s=history.seconds)

    return episode_task(
        spec, model, worker=worker, features=features, stop=run.stop, finish=finish,
        open_stream=lambda position: data.stream(spec, position=position, rank=worker.rank, world=worker.world,
                                                 side=side),
        on_step=make_grid_writer(run) if run.grid and worker.rank == 0 else None)


def _open_features(run: RunContext, model: Any) -> Any:
    """The reader of the run's kept features; None where `train.features` is off."""
    from pipelines.features.reader import FeatureReader

    precision = run.spec.train.features
    if precision == "off":
        return None
    return FeatureReader.open(run.features, model, precision, pool_bytes=run.feature_pool)


def clear_checkpoints(folder: Path) -> None:
    """Remove checkpoints that killed workers of this machine left in `folder` before they were uploaded."""
    import psutil

    for left in folder.glob(f"{CHECKPOINTS}*"):
        pid = left.name.removeprefix(CHECKPOINTS).partition("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def _report(step: int, write: Callable[[Path], None]) -> None:
    """Hand this worker's part of a checkpoint to Ray Train, which uploads it while training goes on."""
    import ray.train

    folder = Path(tempfile.mkdtemp(prefix=f"{CHECKPOINTS}{os.getpid()}-"))
    write(folder)
    checkpoint = ray.train.Checkpoint.from_directory(folder)
    ray.train.report({"step": step}, checkpoint=checkpoint, checkpoint_dir_name=f"checkpoint_{step:07d}",
                     checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
                     delete_local_checkpoint_after_upload=True)


def _log(run: BaseRun, rank: int, step: int, row: dict[str, float]) -> None:
    if rank == 0:
        run.track("at_step", run.label, step, run.stage)
        prefix = "select/" if run.stage == "selecting" else ""
        machine = {} if run.tracker is None else system_metrics()
        run.track("metrics", run.label, {f"{prefix}{k}": v for k, v in {**row, **machine}.items() if k != "step"}, step)


def system_metrics() -> dict[str, float]:
    """Load of this machine in percent and megabytes, under the names that MLflow shows as system metrics."""
    import psutil
    import torch

    memory = psutil.virtual_memory()
    found = {"cpu_utilization_percentage": psutil.cpu_percent(), "system_memory_usage_percentage": memory.percent,
             "process_memory_megabytes": psutil.Process().memory_info().rss / 1e6}
    if torch.cuda.is_available():
        free, whole = torch.cuda.mem_get_info()
        found |= {"gpu_0_memory_usage_percentage": 100 * (1 - free / whole),
                  "gpu_0_peak_memory_megabytes": torch.cuda.max_memory_allocated() / 1e6}
    return {f"system/{name}": value for name, value in found.items()}


def write_bundle(run: RunContext, model: Any, data: Any, *, train_s: float) -> None:
    """Write the bundle of a run: its trained tensors, and the photos and classes that it was trained on."""
    from pipelines.bundles.bundle import save_bundle
    from pipelines.training.base_learner import base_learner_of

    spec = run.spec
    trained = spec.trains
    opened = data.parts(spec)
    photos = {p for d in opened for p in d.train_photos(spec.train.novel_images)} if trained else set()
    learner = base_learner_of(run)
    classes = list(dict.fromkeys(c.name for d in opened for c in d.base))
    save_bundle(
        run.bundle, model.cpu(), recipe_config=spec.method.config, weights=spec.method.weights,
        sha256=spec.method.sha256, dataset=spec.dataset, data_hash=spec.data_hash,
        classes=classes if trained else [], trained_on=sorted(photos | set(learner.photos if learner else [])),
        provenance={"run": spec.name, "spec": spec.model_dump(), "code": code_version(), "train_s": train_s,
                    "steps": run.stop or spec.steps, "base_learner": learner.spec.name if learner else "",
                    "hidden_classes": {d.shards.manifest.dataset: d.hidden_names for d in opened}},
    )
