"""The pretraining loop. Killed at any step, it resumes from its last checkpoint and ends with the same numbers.

    checkpoint/    model.safetensors, optimiser.pt, about.json: the step, the settings and the rows logged so far
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fss_models.errors import FssError
from fss_models.pretraining.bank import Scene, SceneRing, draw_clips
from fss_models.pretraining.objective import TRUNK, PretrainClips, pretrain_losses, train_all_but_trunk
from fss_models.pretraining.views import LabelledPhoto, Views, make_views
from fss_models.sam2_core.core import Sam2Core
from pipelines.pretraining.config import PretrainConfig

SCENES, CLIPS = 0, 1  # streams of random numbers
Read = Callable[[int], LabelledPhoto]
Log = Callable[[dict[str, float]], None]


class Encoder:
    """Normalises views as the preset does and computes the frozen trunk's maps."""

    def __init__(self, core: Sam2Core, mean: tuple[float, ...], std: tuple[float, ...], device: str) -> None:
        self._trunk, self._device = core.sam.image_encoder.trunk, device
        self._mean, self._std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (mean, std))

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> list[Tensor]:
        """The trunk's four maps of views [N, 3, R, R] uint8."""
        maps: list[Tensor] = self._trunk((pixels.to(self._device).float() / 255 - self._mean) / self._std)
        return maps


class Scenes:
    """Scene n: views of the nth photo of a shuffled order, with objects pasted from another photo drawn at random."""

    def __init__(self, read: Read, photos: list[int], config: PretrainConfig, encode: Encoder, side: int) -> None:
        self._read, self._photos, self._config, self._encode, self._side = read, photos, config, encode, side

    def views(self, n: int) -> Views:
        """Views of scene n. A photo whose objects are all too small is replaced by one drawn at random."""
        rng = np.random.default_rng([self._config.seed, SCENES, n])
        epoch, turn = divmod(n, len(self._photos))
        order = np.random.default_rng([self._config.seed, SCENES, 2**40 + epoch]).permutation(self._photos)
        photo = self._read(int(order[turn]))
        while not len(photo.masks):
            photo = self._read(int(rng.choice(self._photos)))
        other = self._read(int(rng.choice(self._photos)))
        return make_views(photo, self._config.views.build(), rng, self._side, other)

    def __call__(self, n: int) -> Scene:
        """Scene n with its views encoded."""
        return Scene.make(self.views(n), self._encode)


def pretrain(config: PretrainConfig, core: Sam2Core, scenes: Scenes, *, folder: Path, measure: Callable[[], Any],
             log: Log) -> list[dict[str, float]]:
    """Train everything above the trunk in place; returns the rows that were logged.

    `measure` returns the figures on held-out photos. Raises `FssError` for a loss that is not finite, and for a
    checkpoint of other settings.
    """
    train_all_but_trunk(core)
    params = [p for p in core.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(params, lr=config.lr, weight_decay=config.weight_decay)
    step, rows = _resume(folder, config, core, optimiser)
    began, seen = time.perf_counter(), []
    for clips in _clips(config, scenes, step):
        moved = [c.to(_device(core)) for c in clips]
        values = _step(core.train(), params, optimiser, moved, config, _rate(step, config))
        seen.append(values)
        step += 1
        if step % config.log_every == 0 or step == config.steps:
            rows.append(_row(step, seen, time.perf_counter() - began, config))
            began, seen = time.perf_counter(), []
            if step % config.measure_every == 0 or step == config.steps:
                rows[-1] |= measure()
            log(rows[-1])
        if step % config.checkpoint_every == 0 or step == config.steps:
            _save(folder, config, core, optimiser, step, rows)
        if step >= config.steps:
            break
    return rows


def _device(core: Sam2Core) -> torch.device:
    return next(core.parameters()).device


def _rate(step: int, config: PretrainConfig) -> float:
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(config.steps - config.warmup, 1)
    return config.lr * 0.5 * (1 + math.cos(math.pi * done))


def _clips(config: PretrainConfig, scenes: Scenes, step: int) -> Iterator[list[PretrainClips]]:
    """Each step's clips, drawn from the step's scenes. New scenes are prepared in a thread beside the training."""
    if step >= config.steps:
        return
    ring = SceneRing(scenes, size=config.ring, fresh=config.fresh, step=step)
    for scene in ring.missing(step):
        ring.add(scene)
    with ThreadPoolExecutor(1, thread_name_prefix="scenes") as pool:
        while True:
            coming = pool.submit(lambda s: list(ring.missing(s)), step + 1)
            rng = np.random.default_rng([config.seed, CLIPS, step])
            yield draw_clips(ring.scenes, rng, clips=config.clips, absent=config.absent)
            for scene in coming.result():
                ring.add(scene)
            step += 1


def _step(core: Sam2Core, params: list[nn.Parameter], optimiser: torch.optim.Optimizer, clips: list[PretrainClips],
          config: PretrainConfig, lr: float) -> dict[str, Tensor]:
    for group in optimiser.param_groups:
        group["lr"] = lr
    device = params[0].device.type
    half = torch.autocast(device, dtype=torch.bfloat16) if config.precision == "bf16" else nullcontext()
    with half:
        losses = _mean([(len(c.masks), pretrain_losses(core, c)) for c in clips])
    total = torch.stack([v.float() for v in losses.values()]).sum()
    optimiser.zero_grad(set_to_none=True)
    torch.autograd.backward(total)
    norm = nn.utils.clip_grad_norm_(params, config.clip_norm)
    optimiser.step()
    return {"loss": total.detach(), **{f"loss_{k}": v.detach() for k, v in losses.items()}, "grad_norm": norm}


def _mean(found: list[tuple[int, dict[str, Tensor]]]) -> dict[str, Tensor]:
    """Mean of each loss over groups of clips, weighted by the number of clips of a group."""
    clips = sum(n for n, _ in found)
    return {k: torch.stack([v[k].float() * (n / clips) for n, v in found]).sum() for k in found[0][1]}


def _row(step: int, seen: list[dict[str, Tensor]], seconds: float, config: PretrainConfig) -> dict[str, float]:
    means = {k: float(torch.stack([v[k].float() for v in seen]).mean()) for k in seen[0]}
    if not math.isfinite(means["loss"]):
        raise FssError(f"the loss is not finite between steps {step - len(seen) + 1} and {step}", hint="lower lr")
    return {"step": step, "seconds": seconds, "clips_per_s": len(seen) * config.clips / max(seconds, 1e-9), **means}


# ---- checkpoints --------------------------------------------------------------------------------------------------

def trained_state(core: Sam2Core) -> dict[str, Tensor]:
    """All tensors above the trunk, on the CPU, under the names of SAM 2's checkpoints."""
    return {k: v.detach().cpu().contiguous() for k, v in core.sam.state_dict().items() if not k.startswith(TRUNK)}


def _identity(config: PretrainConfig) -> dict[str, Any]:
    """The settings that decide the numbers of a pretraining."""
    beside = {"out", "threads", "device", "log_every", "measure_every", "checkpoint_every"}
    return json.loads(config.model_dump_json(exclude=beside))  # type: ignore[no-any-return]


def _save(folder: Path, config: PretrainConfig, core: Sam2Core, optimiser: torch.optim.Optimizer, step: int,
          rows: list[dict[str, float]]) -> None:
    new = folder / "checkpoint.new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    save_file(trained_state(core), new / "model.safetensors")
    torch.save(optimiser.state_dict(), new / "optimiser.pt")
    (new / "about.json").write_text(json.dumps({"step": step, "rows": rows, "config": _identity(config)}))
    old = folder / "checkpoint.old"
    if (folder / "checkpoint").exists():
        (folder / "checkpoint").rename(old)
    new.rename(folder / "checkpoint")
    shutil.rmtree(old, ignore_errors=True)


def _resume(folder: Path, config: PretrainConfig, core: Sam2Core,
            optimiser: torch.optim.Optimizer) -> tuple[int, list[dict[str, float]]]:
    """(step, rows) of the last checkpoint, which is loaded; (0, []) where there is none.

    Raises `FssError` for a checkpoint of other settings.
    """
    last = next((p for p in (folder / "checkpoint", folder / "checkpoint.old") if (p / "about.json").is_file()), None)
    if last is None:
        return 0, []
    about = json.loads((last / "about.json").read_text())
    if about["config"] != _identity(config):
        changed = [k for k, v in _identity(config).items() if about["config"].get(k) != v]
        raise FssError(f"this folder holds a pretraining with other settings ({', '.join(changed)})", where=str(folder),
                       hint="use another --out, or delete the folder")
    core.sam.load_state_dict(load_file(last / "model.safetensors"), strict=False)
    optimiser.load_state_dict(torch.load(last / "optimiser.pt", weights_only=True))
    return about["step"], about["rows"]
