"""A training step from stored features, compared with the same step from photos that are resized and encoded again.

Both ways make the clip as training does (photos are already decoded; features are read from a file, not from memory)
and end with the optimiser's step. Dropout is off, so that the losses can be compared. `step_ratio` excludes making the
clip, which training does in parallel with the step. Needs only torch, timm and sam2.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.episodes import autocast, centred_disc
from benchmarks.timing import time_interleaved
from fss_models import registry
from fss_models.clip import Clip, Features, Images
from fss_models.prompts import mask_prompt
from fss_models.segmenter import Segmenter
from pipelines.features.records import Layout

CONFIG: dict[str, Any] = {"method": "fcp", "preset": "nano", "config": {}, "shots": 1, "clips": 4, "images": 64,
                          "side": 480, "kept": "float32", "precision": "float32", "repeats": 5, "threads": 1,
                          "device": "cpu", "seed": 0}
MakeClip = Callable[[np.ndarray], Clip]  # makes a clip of the photos of these numbers


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Seconds of both ways, their ratio, the largest difference of a loss, and the size of the features in bytes."""
    model = registry.build(config["method"], config["preset"], config["config"], seed=config["seed"])
    model = model.to(config["device"]).eval()
    photos = np.random.default_rng(config["seed"]).integers(
        0, 256, (config["images"], config["side"], config["side"], 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        layout = _write_features(model, photos, Path(folder, "part.bin"), config)
        with _reader(Path(folder, "part.bin"), layout, config["side"]) as read:
            facts = _measure(model, photos, read, config)
        written = Path(folder, "part.bin").stat().st_size
    return facts | {"record_bytes": layout.record_bytes, "announced_bytes": layout.record_bytes * config["images"],
                    "written_bytes": written, "pixel_bytes": 3 * config["side"] ** 2,
                    "maps": {k: list(v) for k, v in layout.maps.items()}}


def _measure(model: Segmenter, photos: np.ndarray, read: Callable[[np.ndarray], Features],
             config: dict[str, Any]) -> dict[str, Any]:
    makers: dict[str, MakeClip] = {"photos": lambda at: _clip(model, at, photos, None, config),
                                   "kept": lambda at: _clip(model, at, photos, read, config)}
    count = config["clips"] * (config["shots"] + 1)
    drawn = np.random.default_rng(config["seed"]).permutation(config["images"])
    chosen = np.resize(drawn, count)
    clips = {name: make(chosen) for name, make in makers.items()}
    losses = {name: _losses(model, clip, config) for name, clip in clips.items()}
    worst = max(abs(losses["kept"][k] - v) / max(abs(v), 1e-9) for k, v in losses["photos"].items())
    step = _optimiser_step(model, config)
    rng = np.random.default_rng(config["seed"])

    def whole(make: MakeClip) -> Callable[[], None]:
        return lambda: step(make(rng.choice(config["images"], count)))

    whole_ways = {name: whole(make) for name, make in makers.items()}
    step_ways = {f"{name}_step": (lambda c=clip: step(c)) for name, clip in clips.items()}
    times = time_interleaved({**whole_ways, **step_ways}, config["repeats"], config["device"])
    tolerance = 1e-4 if (config["kept"], config["precision"]) == ("float32", "float32") else 0.05
    return {"ratio": times["photos"] / times["kept"], "step_ratio": times["photos_step"] / times["kept_step"],
            "largest_relative_difference_of_a_loss": worst, "same_losses": worst < tolerance, "seconds": times,
            "clips_per_s": {name: config["clips"] / times[name] for name in makers}}


def _write_features(model: Segmenter, photos: np.ndarray, file: Path, config: dict[str, Any]) -> Layout:
    """Encode all photos and write their records to `file`, as `fss features build` does. Returns their layout."""
    layout: Layout | None = None
    with torch.inference_mode(), file.open("wb") as out:
        for first in range(0, len(photos), 8):
            found = model.encode_frozen(model.prepare(list(photos[first : first + 8])).to(config["device"]))
            layout = layout or Layout.of(found, config["kept"])
            out.writelines(layout.pack(found))
    assert layout is not None
    return layout


@contextmanager
def _reader(file: Path, layout: Layout, side: int) -> Iterator[Callable[[np.ndarray], Features]]:
    """Yield a function that reads the features of photos by range reads of the file, without a pool in memory."""
    size = layout.record_bytes
    with file.open("rb") as opened:
        def read(chosen: np.ndarray) -> Features:
            records = [os.pread(opened.fileno(), size, int(i) * size) for i in chosen]
            return Features(maps=layout.unpack(records), sizes=torch.full((len(chosen), 2), side))

        yield read


def _clip(model: Segmenter, at: np.ndarray, photos: np.ndarray, read: Callable[[np.ndarray], Features] | None,
          config: dict[str, Any]) -> Clip:
    """A batch of clips of the photos `at`, references first; every object is a disc. `read` reads stored features."""
    clips, shots, side = config["clips"], config["shots"], config["side"]
    split = clips * shots
    groups = at[:split], at[split:]
    images = [_images(model, photos[g], read is None) for g in groups]
    disc = centred_disc(side, side)
    prompts = model.collate([[mask_prompt(disc) for _ in range(shots)] for _ in range(clips)], images[0].sizes)
    target = model.preprocessor.target(disc)[None, None].expand(clips, 1, -1, -1)
    clip = Clip(references=images[0], prompts=prompts, targets=images[1], target_masks=target,
                ignore=torch.zeros_like(target, dtype=torch.bool), frozen=read(at) if read else None)
    moved: Clip = clip.to(config["device"])
    return moved


def _images(model: Segmenter, photos: np.ndarray, pixels: bool) -> Images:
    if pixels:
        return model.prepare(list(photos))
    return Images(pixels=torch.empty(len(photos), 3, 0, 0), sizes=torch.tensor([p.shape[:2] for p in photos]))


def _losses(model: Segmenter, clip: Clip, config: dict[str, Any]) -> dict[str, float]:
    with torch.no_grad(), autocast(config):
        return {k: float(v) for k, v in model.losses(clip).items()}


def _optimiser_step(model: Segmenter, config: dict[str, Any]) -> Callable[[Clip], None]:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-5)

    def step(clip: Clip) -> None:
        with autocast(config):
            total = torch.stack([v.float() for v in model.losses(clip).values()]).sum()
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(total)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()

    return step
