"""A pretraining as a task of the training engine: its model, its clips, its measurements, and its weight file."""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Generator
from pathlib import Path

import numpy as np
import torch

from fss_models.errors import FssError
from fss_models.presets import RANDOM
from fss_models.pretraining.bank import SceneRing, draw_clips
from fss_models.pretraining.objective import ClipBatch, PretrainModel
from fss_models.pretraining.start import attend_by_position
from fss_models.sam2_core.build import build_sam2
from fss_models.sam2_core.core import Sam2Core
from fss_models.shipped.files import HASH_DIGITS, Provenance, TrainingData, write_weights
from pipelines.base.storage import Store
from pipelines.data.shardset import Shards
from pipelines.pretraining.config import PretrainConfig
from pipelines.pretraining.measure import fixed_clips, held_out_ious
from pipelines.pretraining.scenes import Encoder, Photos, Scenes
from pipelines.training.context import BaseRun
from pipelines.training.state import History
from pipelines.training.task import TrainingTask, WorkerRank

CLIPS = 1  # stream of random numbers
MEASURED_SCENES, MEASURED_GROUPS = 48, 12
PHOTOS_TERMS = "the terms of its photos"
WEIGHTS_TERMS = "research use: trained on photos under their own terms"


class PretrainRun(BaseRun):
    """The run of a pretraining. Workers have another working folder: paths are those of `spec`, made absolute."""

    spec: PretrainConfig
    out: str  # URL of the folder for the weights
    start: str  # weight file to start from
    shards: tuple[str, ...]  # URLs, one a dataset
    commit: str


def open_pretraining(run: PretrainRun, worker: WorkerRank) -> TrainingTask:
    """The task of a pretraining. At its end the weights are written, and their provenance is returned.

    Raises `FssError` for photos and start weights that do not fit.
    """
    config = run.spec
    photos = Photos([Shards(url) for url in run.shards], hide=config.hide)
    held, used = _held_out(len(photos), config)
    model = PretrainModel(_build(run).to(worker.device))
    encode = Encoder(model.core, config.preset, worker.device)
    scenes, unseen = (Scenes(photos.read, some, config, encode) for some in (used, held))
    clips = fixed_clips([unseen(n) for n in range(MEASURED_SCENES)], seed=config.seed, groups=MEASURED_GROUPS)

    def measure(step: int, trained: PretrainModel) -> dict[str, float]:
        if step % config.measure_every and step != config.steps:
            return {}
        figures = held_out_ious(trained.core, clips)
        trained.train()
        return figures

    return TrainingTask(
        name=config.name, identity=config.identity, seed=config.seed,
        train=config.train, steps=config.steps, model=model, on_step=measure, section="",
        batches=lambda position, step: _batches(config, scenes, step),
        finish=lambda history: _write(run, model, photos, history))


def _held_out(count: int, config: PretrainConfig) -> tuple[list[int], list[int]]:
    """(indices of the photos held out for measuring, indices of those that are trained on)."""
    order = np.random.default_rng([config.seed, 11]).permutation(count).tolist()
    cut = max(1, round(count * config.held_out))
    if cut >= count:
        raise FssError(f"{count} photos are too few: {cut} would be held out and none trained on", hint="add photos")
    return sorted(order[:cut]), sorted(order[cut:])


def _build(run: PretrainRun) -> Sam2Core:
    torch.manual_seed(run.spec.seed)
    config = run.spec
    side = config.side or None
    core = Sam2Core(build_sam2(config.preset, weights=run.start or RANDOM, object_scores=True, side=side))
    if not run.start:
        attend_by_position(core)
    return core


def _batches(config: PretrainConfig, scenes: Scenes, step: int) -> Generator[tuple[ClipBatch, None]]:
    """Each step's clips, drawn from the step's scenes: functions of (seed, step), so that no position is kept."""
    ring = SceneRing(scenes, size=config.ring, fresh=config.fresh, step=step)
    while True:
        for scene in ring.missing(step):
            ring.add(scene)
        rng = np.random.default_rng([config.seed, CLIPS, step])
        yield ClipBatch(draw_clips(ring.scenes, rng, clips=config.clips, absent=config.absent)), None
        step += 1


def _write(run: PretrainRun, model: PretrainModel, photos: Photos, history: History) -> Provenance:
    """Write the weights and their provenance, which names every photo that was opened, the held-out ones too."""
    config, device = run.spec, next(model.parameters()).device.type
    opened: dict[int, set[str]] = {d: set() for d in range(len(config.data))}
    for place in photos.places:
        opened[place.dataset].add(place.sha256[:HASH_DIGITS])
    terms = [config.licences.get(d.name, PHOTOS_TERMS) for d in config.data]
    data = tuple(TrainingData(name=d.name, licence=term, photos=tuple(sorted(opened[i])))
                 for i, (d, term) in enumerate(zip(config.data, terms, strict=True)))
    with tempfile.TemporaryDirectory(prefix="fss-weights-") as folder:
        about = write_weights(
            config.preset, model.trainable_state(), folder=Path(folder), data=data, commit=run.commit,
            recipe=config.model_dump(mode="json", exclude={"tracking", "retries"}), seeds=(config.seed,),
            steps=config.steps, seconds=history.seconds, hardware=f"{platform.system()} {platform.machine()}, {device}",
            quality={k: v for k, v in history.rows[-1].items() if k.startswith("iou_")}, licence=WEIGHTS_TERMS,
            created=time.strftime("%Y-%m-%d", time.gmtime()))
        store, description = Store(run.out), f"{config.preset}.json"
        store.delete(description)  # else the new file could stand beside the old description
        for name in (about.file, description):
            store.write_bytes(name, Path(folder, name).read_bytes())
    return about
