"""The training loop of one worker. It does not import Ray: `worker.py` connects it to Ray Train."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fss_models import registry
from fss_models.clip import Clip
from fss_models.errors import FssError
from fss_models.segmenter import Segmenter
from pipelines.config.run import RunSpec
from pipelines.config.train import TrainConfig
from pipelines.data.collate import ReadFeatures, make_clip
from pipelines.data.mixture import MixedStream
from pipelines.data.stream import EpisodeStream
from pipelines.training.state import History, load_state, save_state

Stream = EpisodeStream | MixedStream
OpenStream = Callable[[Any], Stream]  # (position or None)
Save = Callable[[int, Callable[[Path], None]], None]  # (step, writes a checkpoint into a folder)
Log = Callable[[int, dict[str, float]], None]
OnStep = Callable[[int, Segmenter], None]  # (steps done, model); called after every step


@dataclass(frozen=True, kw_only=True)
class WorkerRank:
    """Rank of a worker, number of workers of its run, and the device that it trains on."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"


class _Losses(nn.Module):
    """`losses` as a forward pass: what DistributedDataParallel synchronises."""

    def __init__(self, model: Segmenter) -> None:
        super().__init__()
        self.model = model

    def forward(self, clip: Clip) -> dict[str, Tensor]:
        return self.model.losses(clip)


def lr_at(step: int, train: TrainConfig) -> float:
    """The learning rate of step `step`, counted from 0: linear warm-up, then the schedule down to 0."""
    if step < train.warmup:
        return train.lr * (step + 1) / train.warmup
    if train.schedule == "constant":
        return train.lr
    done = (step - train.warmup) / max(train.steps - train.warmup, 1)
    return train.lr * (0.5 * (1 + math.cos(math.pi * done)) if train.schedule == "cosine" else (1 - done) ** 0.9)


def fit(spec: RunSpec, model: Segmenter, *, worker: WorkerRank, open_stream: OpenStream, resume: Path | None,
        save: Save, log_row: Log, features: ReadFeatures | None = None, stop: int = 0,
        on_step: OnStep | None = None) -> History:
    """Train `model` in place up to `spec.steps` (or `stop`), from the checkpoint folder `resume` where there is one.

    `features` reads the features of photos that `open_stream` leaves undecoded (`train.features`). `on_step` is called
    after every step, before that step's checkpoint.

    Raises `FssError` for a checkpoint of another run, a method with nothing to train and a loss that is not finite.
    """
    train, model = spec.train, model.to(worker.device).train()
    params = [p for p in model.parameters() if p.requires_grad]
    if not params:
        raise FssError(f"method {spec.method.name!r} has nothing to train with this configuration")
    optimiser = torch.optim.AdamW(params, lr=train.lr, weight_decay=train.weight_decay)
    torch.manual_seed(spec.seed + worker.rank)
    step, position, history = 0, None, History()
    if resume:
        back = load_state(resume, spec, model, optimiser, rank=worker.rank, world=worker.world)
        step, position, history = back.step, back.position, back.history
    end = stop or spec.steps
    if step >= end:  # the run was killed after its last checkpoint
        return history
    forward = _distributed(model, worker, train)
    window = _Window(train)
    with closing(open_stream(position)) as stream:
        for clip, position, waited in _ahead(_clips(spec, model, stream, worker, step, features)):
            lr = lr_at(step, train)
            window.add(step, _step(forward, params, optimiser, clip.to(worker.device), train, lr), lr, waited)
            step += 1
            if on_step:
                on_step(step, model)
            checkpoint = step % train.checkpoint_every == 0 or step == end
            if checkpoint or step % train.log_every == 0:
                log_row(step, history.add(step, *window.flush(spec.name)))
            if checkpoint:
                save(step, partial(save_state, spec=spec, model=model, optimiser=optimiser, step=step, rank=worker.rank,
                                   position=position, history=history, world=worker.world))
            if step >= end:
                break
    return history


def _distributed(model: Segmenter, worker: WorkerRank, train: TrainConfig) -> nn.Module:
    losses: nn.Module = _Losses(model)
    if worker.world > 1:
        # A step may leave parts unused, such as the encoder of a kind of prompt that no clip of the batch has.
        losses = nn.parallel.DistributedDataParallel(losses, find_unused_parameters=True)
    if train.compile:
        losses.compile()
    return losses


def _step(forward: nn.Module, params: list[nn.Parameter], optimiser: torch.optim.Optimizer, clip: Clip,
          train: TrainConfig, lr: float) -> dict[str, Tensor]:
    """Take one optimiser step. Returns the losses, their sum and the gradient norm, all on the device."""
    for group in optimiser.param_groups:
        group["lr"] = lr
    optimiser.zero_grad(set_to_none=True)
    *earlier, last = clip.split(train.accumulate)
    apart = getattr(forward, "no_sync", nullcontext)  # workers exchange gradients once a step, after the last part
    with apart():
        found = [_backward(forward, part, train) for part in earlier]
    found.append(_backward(forward, last, train))
    norm = nn.utils.clip_grad_norm_(params, train.clip_norm or math.inf)
    optimiser.step()
    return {**{k: torch.stack([f[k] for f in found]).mean() for k in found[0]}, "grad_norm": norm.detach()}


def _backward(forward: nn.Module, clip: Clip, train: TrainConfig) -> dict[str, Tensor]:
    """Add the gradients of one part of a step. Returns its losses and their sum, all on the device."""
    with torch.autocast(clip.target_masks.device.type, dtype=torch.bfloat16, enabled=train.precision == "bf16"):
        losses: dict[str, Tensor] = forward(clip)
        total = torch.stack([v.float() for v in losses.values()]).sum()
    torch.autograd.backward(total / train.accumulate)
    return {"loss": total.detach(), **{f"loss_{k}": v.detach() for k, v in losses.items()}}


class _Window:
    """Collects the figures of steps on the device; one transfer to the host a window."""

    def __init__(self, train: TrainConfig) -> None:
        self._batch = train.batch
        self._rows: list[tuple[int, dict[str, Tensor]]] = []
        self._lr, self._waited, self._start = 0.0, 0.0, time.perf_counter()

    def add(self, step: int, values: dict[str, Tensor], lr: float, waited: float) -> None:
        self._rows.append((step, values))
        self._lr = lr
        self._waited += waited

    def flush(self, run: str) -> tuple[float, dict[str, float]]:
        """(seconds, means over the window). Raises `FssError` with the first step that was not finite."""
        names = list(self._rows[0][1])
        table = torch.stack([torch.stack([v[n].float() for n in names]) for _, v in self._rows]).cpu()
        for (step, _), row in zip(self._rows, table, strict=True):
            if not bool(torch.isfinite(row).all()):
                raise FssError(f"the loss or its gradient is not finite at step {step + 1} (loss {float(row[0])})",
                               where=run, hint="lower train.lr or train.clip_norm, or use train.precision=fp32")
        now = time.perf_counter()
        seconds, count = now - self._start, len(self._rows)
        share = self._waited / max(seconds, 1e-9)
        speed = {"episodes_per_s": count * self._batch / max(seconds, 1e-9), "data_wait": share}
        means = dict(zip(names, table.mean(dim=0).tolist(), strict=True))
        self._rows, self._waited, self._start = [], 0.0, now
        return seconds, {**means, "lr": self._lr, **speed}


def _clips(spec: RunSpec, model: Segmenter, stream: Stream, worker: WorkerRank, step: int,
           features: ReadFeatures | None) -> Iterator[tuple[Clip, Any]]:
    """Batches, each with the stream's position after it. Flips and prompts depend on (seed, rank, step) alone."""
    train = spec.train
    augment = None if train.augment == "none" else registry.method_class(train.augment).augmentation(
        model.side, scale=train.augment_scale)
    for samples in stream:
        position = json.loads(json.dumps(stream.position))
        rng = np.random.default_rng([spec.seed, worker.rank, step])
        clip = make_clip(model, samples, rng, flip=train.flip, vary_shots=train.vary_shots, prompts=train.prompts,
                         augment=augment, read_features=features)
        yield clip, position
        step += 1


def _ahead(items: Iterator[tuple[Clip, Any]]) -> Iterator[tuple[Clip, Any, float]]:
    """The items, each with the seconds spent waiting for it; the next one is prepared while one is used."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="clips") as pool:
        coming, start = pool.submit(next, items, None), time.perf_counter()
        while (item := coming.result()) is not None:
            waited = time.perf_counter() - start
            coming = pool.submit(next, items, None)
            yield *item, waited
            start = time.perf_counter()
