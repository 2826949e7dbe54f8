"""A whole pretraining: shards of its datasets, the loop, and the weight file with its provenance."""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path

import numpy as np
import torch

from fss_models.errors import FssError
from fss_models.presets import RANDOM, preprocessor
from fss_models.pretraining.start import attend_by_position
from fss_models.sam2_core.build import build_sam2
from fss_models.sam2_core.core import Sam2Core
from fss_models.shipped.files import HASH_DIGITS, Provenance, TrainingData, write_weights
from pipelines.base.storage import join
from pipelines.base.version import code_version
from pipelines.config.data import DataConfig
from pipelines.data.shards import build_shards
from pipelines.data.shardset import Shards
from pipelines.pretraining.config import PretrainConfig
from pipelines.pretraining.loop import Encoder, Log, Scenes, pretrain, trained_state
from pipelines.pretraining.measure import fixed_clips, held_out_ious
from pipelines.pretraining.scenes import Photos

MEASURED_SCENES, MEASURED_GROUPS = 48, 12
PHOTOS_TERMS = "the terms of its photos"
WEIGHTS_TERMS = "research use: trained on photos under their own terms"


def run_pretraining(config: PretrainConfig, log: Log) -> Provenance:
    """Train, or resume, and write PRESET.safetensors (half precision) and PRESET.json below `config.out`.

    The folder can replace that of the shipped weights (FSS_SHIPPED). Returns the content of the JSON file.
    Raises `FssError` for photos, settings and checkpoints that do not fit.
    """
    folder, commit = Path(config.out), code_version()
    torch.set_num_threads(config.threads)
    shards = [_shards(data, folder) for data in config.data]
    photos = Photos(shards, hide=config.hide)
    held, used = _held_out(len(photos), config)
    core, encode = _build(config)
    scenes = Scenes(photos.read, used, config, encode, core.side)
    clips = fixed_clips([Scenes(photos.read, held, config, encode, core.side)(n) for n in range(MEASURED_SCENES)],
                        seed=config.seed, groups=MEASURED_GROUPS)
    rows = pretrain(config, core, scenes, folder=folder, measure=lambda: held_out_ious(core, clips), log=log)
    return _write(folder, config, core, photos, rows, commit)


def _shards(data: DataConfig, folder: Path) -> Shards:
    url = join(str(folder), "shards", data.name)
    build_shards(data, url)
    return Shards(url)


def _held_out(count: int, config: PretrainConfig) -> tuple[list[int], list[int]]:
    """(indices of the photos held out for measuring, indices of those that are trained on)."""
    order = np.random.default_rng([config.seed, 11]).permutation(count).tolist()
    cut = max(1, round(count * config.held_out))
    if cut >= count:
        raise FssError(f"{count} photos are too few: {cut} would be held out and none trained on", hint="add photos")
    return sorted(order[:cut]), sorted(order[cut:])


def _build(config: PretrainConfig) -> tuple[Sam2Core, Encoder]:
    torch.manual_seed(config.seed)
    core = Sam2Core(build_sam2(config.preset, weights=config.start or RANDOM, object_scores=True))
    if not config.start:
        attend_by_position(core)
    device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    resize = preprocessor(config.preset)
    return core.to(device), Encoder(core, resize.mean, resize.std, device)


def _write(folder: Path, config: PretrainConfig, core: Sam2Core, photos: Photos,
           rows: list[dict[str, float]], commit: str) -> Provenance:
    """Write the weights and their provenance, which names every photo that was opened, the held-out ones too."""
    opened: dict[int, set[str]] = {d: set() for d in range(len(config.data))}
    for place in photos.places:
        opened[place.dataset].add(place.sha256[:HASH_DIGITS])
    terms = [config.licences.get(d.name, PHOTOS_TERMS) for d in config.data]
    data = tuple(TrainingData(name=d.name, licence=term, photos=tuple(sorted(opened[i])))
                 for i, (d, term) in enumerate(zip(config.data, terms, strict=True)))
    return write_weights(
        config.preset, trained_state(core), folder=folder, data=data, recipe=json.loads(config.model_dump_json()),
        commit=commit, seeds=(config.seed,), steps=config.steps, seconds=sum(r["seconds"] for r in rows),
        hardware=f"{platform.system()} {platform.machine()}, {next(core.parameters()).device.type}",
        quality={k: v for k, v in rows[-1].items() if k.startswith("iou_")}, licence=WEIGHTS_TERMS,
        created=time.strftime("%Y-%m-%d", time.gmtime()))
