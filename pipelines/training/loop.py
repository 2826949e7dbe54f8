"""The training loop of one worker, for every kind of run. It does not import Ray: `worker.py` connects it to Ray Train.

`optimise` trains whatever a `TrainingTask` says; `fit` is the task of a `RunSpec`: a method on a stream of episodes.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
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
from pipelines.training.optimiser import make_optimiser, set_rates
from pipelines.training.state import History, load_state, save_state
from pipelines.training.task import OnStep, TrainingTask, WorkerRank

Stream = EpisodeStream | MixedStream
OpenStream = Callable[[Any], Stream]  # (position or None)
Save = Callable[[int, Callable[[Path], None]], None]  # (step, writes a checkpoint into a folder)
Log = Callable[[int, dict[str, float]], None]


class _Losses(nn.Module):
    """`losses` as a forward pass: what DistributedDataParallel synchronises."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Any) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self.model.losses(batch)
        return found


def lr_at(step: int, train: TrainConfig) -> float:
    """The learning rate of step `step`, counted from 0: linear warm-up, then the schedule."""
    if step < train.warmup:
        return train.lr * (step + 1) / train.warmup
    if train.schedule == "constant":
        return train.lr
    if train.schedule == "step":
        return train.lr * 0.1 ** (3 * step // max(train.steps, 1))
    done = (step - train.warmup) / max(train.steps - train.warmup, 1)
    return train.lr * (0.5 * (1 + math.cos(math.pi * done)) if train.schedule == "cosine" else (1 - done) ** 0.9)


def fit(spec: RunSpec, model: Segmenter, *, worker: WorkerRank, open_stream: OpenStream, resume: Path | None,
        save: Save, log_row: Log, features: ReadFeatures | None = None, stop: int = 0,
        on_step: OnStep | None = None) -> History:
    """Train `model` in place up to `spec.steps` (or `stop`), from the checkpoint folder `resume` where there is one.

    Raises `FssError` as `episode_task` and `optimise` do.
    """
    task = episode_task(spec, model, worker=worker, open_stream=open_stream, features=features, stop=stop,
                        on_step=on_step)
    return optimise(task, worker=worker, resume=resume, save=save, log_row=log_row)


def episode_identity(spec: RunSpec) -> dict[str, Any]:
    """What a checkpoint of a run says of itself."""
    return {"run": spec.name, "method": spec.method.name, "preset": spec.method.preset}


def episode_task(spec: RunSpec, model: Segmenter, *, worker: WorkerRank, open_stream: OpenStream,
                 features: ReadFeatures | None = None, stop: int = 0, on_step: OnStep | None = None,
                 finish: Callable[[History], Any] = lambda history: None) -> TrainingTask:
    """The task of a run. `features` reads the features of photos that `open_stream` leaves undecoded.

    Raises `FssError` for a method with nothing to train.
    """
    task = TrainingTask(
        name=spec.name, identity=episode_identity(spec), seed=spec.seed, train=spec.train,
        steps=stop or spec.steps, model=model, on_step=on_step, finish=finish,
        batches=lambda position, step: _clips(spec, model, open_stream(position), worker, step, features))
    if not task.parameters:
        raise FssError(f"method {spec.method.name!r} has nothing to train with this configuration")
    return task


def optimise(task: TrainingTask, *, worker: WorkerRank, resume: Path | None, save: Save, log_row: Log) -> History:
    """Train the task's model in place, from the checkpoint folder `resume` where there is one.

    Raises `FssError` for a checkpoint of another run and a loss that is not finite.
    """
    train, model = task.train, task.model.to(worker.device).train()
    params = task.parameters
    optimiser = make_optimiser(task)
    torch.manual_seed(task.seed + worker.rank)
    step, position, history = 0, None, History()
    if resume:
        back = load_state(resume, task.identity, model, optimiser, rank=worker.rank, world=worker.world)
        step, position, history = back.step, back.position, back.history
    if step >= task.steps:  # the run was killed after its last checkpoint
        return history
    forward = _distributed(model, worker, train)
    window = _Window(task)
    with closing(task.batches(position, step)) as batches, closing(_ahead(batches)) as ahead:
        for batch, position, waited in ahead:
            lr = lr_at(step, train)
            window.add(step, _step(forward, params, optimiser, batch.to(worker.device), train, lr), lr, waited)
            step += 1
            if task.on_step:
                window.figures |= task.on_step(step, model) or {}
            checkpoint = step % train.checkpoint_every == 0 or step == task.steps
            if checkpoint or step % train.log_every == 0:
                log_row(step, history.add(step, *window.flush()))
            if checkpoint:
                save(step, partial(save_state, identity=task.identity, model=model, optimiser=optimiser, step=step,
                                   rank=worker.rank, position=position, history=history, world=worker.world))
            if step >= task.steps:
                break
    return history


def _distributed(model: Any, worker: WorkerRank, train: TrainConfig) -> nn.Module:
    losses: nn.Module = _Losses(model)
    if worker.world > 1:
        # A step may leave parts unused, such as the encoder of a kind of prompt that no clip of the batch has.
        losses = nn.parallel.DistributedDataParallel(losses, find_unused_parameters=True)
    if train.compile:
        losses.compile()
    return losses


def _step(forward: nn.Module, params: list[nn.Parameter], optimiser: torch.optim.Optimizer, batch: Any,
          train: TrainConfig, lr: float) -> dict[str, Tensor]:
    """Take one optimiser step. Returns the losses, their sum and the gradient norm, all on the device."""
    set_rates(optimiser, lr)
    optimiser.zero_grad(set_to_none=True)
    *earlier, last = batch.split(train.accumulate) if train.accumulate > 1 else [batch]
    apart = getattr(forward, "no_sync", nullcontext)  # workers exchange gradients once a step, after the last part
    with apart():
        found = [_backward(forward, part, train) for part in earlier]
    found.append(_backward(forward, last, train))
    norm = nn.utils.clip_grad_norm_(params, train.clip_norm or math.inf)
    optimiser.step()
    return {**{k: torch.stack([f[k] for f in found]).mean() for k in found[0]}, "grad_norm": norm.detach()}


def _backward(forward: nn.Module, part: Any, train: TrainConfig) -> dict[str, Tensor]:
    """Add the gradients of one part of a step. Returns its losses and their sum, all on the device."""
    device = next(forward.parameters()).device.type
    with torch.autocast(device, dtype=torch.bfloat16, enabled=train.precision == "bfloat16"):
        losses: dict[str, Tensor] = forward(part)
        total = torch.stack([v.float() for v in losses.values()]).sum()
    torch.autograd.backward(total / train.accumulate)
    return {"loss": total.detach(), **{f"loss_{k}": v.detach() for k, v in losses.items()}}


class _Window:
    """Collects the figures of steps on the device; one transfer to the host a window."""

    def __init__(self, task: TrainingTask) -> None:
        self._task = task
        self.figures: dict[str, float] = {}  # of the model, for the next row
        self._rows: list[tuple[int, dict[str, Tensor]]] = []
        self._lr, self._waited, self._start = 0.0, 0.0, time.perf_counter()

    def add(self, step: int, values: dict[str, Tensor], lr: float, waited: float) -> None:
        self._rows.append((step, values))
        self._lr = lr
        self._waited += waited

    def flush(self) -> tuple[float, dict[str, float]]:
        """(seconds, means over the window). Raises `FssError` with the first step that was not finite."""
        names = list(self._rows[0][1])
        table = torch.stack([torch.stack([v[n].float() for n in names]) for _, v in self._rows]).cpu()
        for (step, _), row in zip(self._rows, table, strict=True):
            if not bool(torch.isfinite(row).all()):
                at = self._task.section
                raise FssError(f"the loss or its gradient is not finite at step {step + 1} (loss {float(row[0])})",
                               where=self._task.name,
                               hint=f"lower {at}lr or {at}clip_norm, or use {at}precision=float32")
        now = time.perf_counter()
        seconds, count = now - self._start, len(self._rows)
        share = self._waited / max(seconds, 1e-9)
        speed = {"episodes_per_s": count * self._task.train.batch / max(seconds, 1e-9), "data_wait": share}
        means = dict(zip(names, table.mean(dim=0).tolist(), strict=True))
        found = {**means, "lr": self._lr, **speed, **self.figures}
        self._rows, self._waited, self._start, self.figures = [], 0.0, now, {}
        return seconds, found


def _clips(spec: RunSpec, model: Segmenter, stream: Stream, worker: WorkerRank, step: int,
           features: ReadFeatures | None) -> Generator[tuple[Clip, Any]]:
    """Batches, each with the stream's position after it. Flips and prompts depend on (seed, rank, step) alone."""
    train = spec.train
    augment = None if train.augment == "none" else registry.method_class(train.augment).augmentation(
        model.side, scale=train.augment_scale)
    with closing(stream):
        for samples in stream:
            position = json.loads(json.dumps(stream.position))
            rng = np.random.default_rng([spec.seed, worker.rank, step])
            clip = make_clip(model, samples, rng, flip=train.flip, vary_shots=train.vary_shots, prompts=train.prompts,
                             augment=augment, read_features=features)
            yield clip, position
            step += 1


def _ahead(items: Iterator[tuple[Any, Any]]) -> Generator[tuple[Any, Any, float]]:
    """The items, each with the seconds spent waiting for it; the next one is prepared while one is used."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="clips") as pool:
        coming, start = pool.submit(next, items, None), time.perf_counter()
        while (item := coming.result()) is not None:
            waited = time.perf_counter() - start
            coming = pool.submit(next, items, None)
            yield *item, waited
            start = time.perf_counter()
