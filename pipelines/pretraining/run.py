"""A whole pretraining: shards of its datasets, and its run on the training engine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fss_models.errors import FssError
from fss_models.shipped.files import Provenance, parse_provenance
from pipelines.base.cluster import cluster
from pipelines.base.outcome import error_line
from pipelines.base.storage import Store
from pipelines.base.tracking import open_tracker
from pipelines.base.version import code_version
from pipelines.base.workspace import Workspace
from pipelines.config.data import DataConfig
from pipelines.data.shards import build_shards
from pipelines.pretraining.config import PretrainConfig
from pipelines.pretraining.task import PretrainRun, open_pretraining
from pipelines.training.state import check_identity
from pipelines.training.worker import train_run

SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray Train's list of a run's checkpoints
Log = Callable[[dict[str, Any]], None]


def run_pretraining(config: PretrainConfig, log: Log) -> Provenance:
    """Train, or resume, and write PRESET.safetensors (half precision) and PRESET.json below `config.out`.

    Weights that a run with the same settings has written are not made again. A local folder can replace that of the
    shipped weights (FSS_SHIPPED). Returns the content of the JSON file. `log` is called with the newest row, at most
    once a second. Raises `FssError` for photos, settings and checkpoints that do not fit, and for a training that
    failed.
    """
    commit, work = code_version(), Workspace(config.out)
    if work.store.exists("checkpoint/about.json"):
        raise FssError("is a checkpoint of an earlier version of fss, which cannot be continued",
                       where=work.store.path("checkpoint"), hint="use another --out, or delete this folder")
    if done := _finished(config, work.store):
        return done
    _check_checkpoint(config, Store(work.run(config.name)))
    with cluster() as ray:
        resources = _resources(config, ray)
        shards = tuple(_shards(data, work) for data in config.data)
        with open_tracker(config.out, config.name, ray, uri=config.tracking) as tracker:
            tracker.run.remote(config.key, params=config.deciding, tags={"fss.code": commit})
            run = PretrainRun(spec=config, out=work.store.url, start=_absolute(config.start), shards=shards,
                              commit=commit, runs=work.runs, key=config.key, threads=config.threads,
                              retries=config.retries, tracker=tracker, **resources)
            try:
                about = _train(run, log, ray)
            except BaseException as error:
                tracker.end.remote(config.key, "FAILED" if isinstance(error, Exception) else "KILLED")
                raise
            tracker.tags.remote(config.key, {"fss.weights": about.sha256})
            tracker.end.remote(config.key)
    return about


def _finished(config: PretrainConfig, store: Store) -> Provenance | None:
    """What the weights below `config.out` were made from, if that is this pretraining and their file is whole."""
    description = f"{config.preset}.json"
    if not store.exists(description):
        return None
    with suppress(FssError, OSError, ValidationError):  # torn, or of a version with other settings: it is written anew
        about = parse_provenance(store.read_json(description), store.path(description))
        same = PretrainConfig.model_validate(about.recipe).deciding == config.deciding
        if same and hashlib.sha256(store.read_bytes(about.file)).hexdigest() == about.sha256:
            return about
    return None


def _check_checkpoint(config: PretrainConfig, run: Store) -> None:
    """Raise `FssError` for a checkpoint of another pretraining, before anything is started."""
    if not run.exists(SNAPSHOT):
        return
    last = (run.read_json(SNAPSHOT)["latest_checkpoint_result"] or {}).get("checkpoint_dir_name")
    if last and run.exists(f"{last}/about.json"):
        check_identity(run.read_json(f"{last}/about.json"), config.identity, where=run.path(last))


def _absolute(path: str) -> str:
    file = Path(path).expanduser()
    return str(file.absolute()) if path and file.is_file() else path


def _shards(data: DataConfig, work: Workspace) -> str:
    build_shards(data, work.shards(data.name))
    return work.shards(data.name)


def _resources(config: PretrainConfig, ray: Any) -> dict[str, float]:
    """CPUs and GPUs of the run. Raises `FssError` for a GPU that the cluster does not have."""
    have = ray.cluster_resources()
    gpus = 1.0 if config.device == "cuda" or (not config.device and have.get("GPU")) else 0.0
    if gpus > have.get("GPU", 0.0):
        raise FssError("device=cuda, but the cluster has no GPU", hint="leave device out")
    return {"cpus": min(float(config.threads), have.get("CPU", 1.0)), "gpus": gpus}


def _train(run: PretrainRun, log: Log, ray: Any) -> Provenance:
    task = ray.remote(train_run).options(num_cpus=0, max_retries=0).remote(run, open_pretraining)
    try:
        ended = False
        shown: dict[str, Any] = {}
        while not ended:
            ended = bool(ray.wait([task], timeout=1.0)[0])
            with suppress(ray.exceptions.RayError):  # the tracker is being restarted
                row = ray.get(run.tracker.progress.remote(), timeout=30).get(run.label, {})
                if "loss" in row and row != shown:
                    shown = row
                    log(row)
        about: Provenance = ray.get(task)
    except Exception as error:
        raise FssError(error_line(error)) from error
    finally:
        with suppress(Exception):  # after an interruption, end the driver and with it its worker
            ray.cancel(task, force=True)
    return about
