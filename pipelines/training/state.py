"""The state of a training run as a checkpoint folder. A run that resumes from it ends as one that never stopped.

    about.json          what it is of (run, method, preset), step, number of workers, position in the episode stream
    model.safetensors   the trained tensors
    optimiser.pt        the optimiser (read with `weights_only=True`; the schedule is a function of the step)
    rank-<r>.pt         random states of one worker
    history.json        losses, learning rate and speed so far
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from fss_models.errors import FssError


@dataclass
class History:
    """Figures that a run reported: one row a window of steps; `step` is the last step of the window."""

    rows: list[dict[str, float]] = field(default_factory=list)

    def add(self, step: int, seconds: float, values: dict[str, float]) -> dict[str, float]:
        """Append a row and return it."""
        row = {"step": step, "seconds": seconds, **values}
        self.rows.append(row)
        return row

    @property
    def seconds(self) -> float:
        """Seconds spent training, over all restarts."""
        return sum(r["seconds"] for r in self.rows)


@dataclass(frozen=True, kw_only=True)
class ResumePoint:
    """The point at which a checkpoint was written. The stream's position does not depend on the number of workers."""

    step: int
    position: Any
    history: History


def save_state(folder: Path, identity: Mapping[str, Any], model: Any, optimiser: torch.optim.Optimizer, *, step: int,
               position: Any, history: History, rank: int, world: int) -> None:
    """Write one worker's part of a checkpoint into `folder`; worker 0 also writes the parts that all workers share."""
    torch.save(_random_state(), folder / f"rank-{rank}.pt")
    if rank:
        return
    save_file(model.trainable_state(), folder / "model.safetensors")
    torch.save(optimiser.state_dict(), folder / "optimiser.pt")
    (folder / "history.json").write_text(json.dumps(history.rows))
    (folder / "about.json").write_text(json.dumps({**identity, "step": step, "world": world, "position": position}))


def load_state(folder: Path, identity: Mapping[str, Any], model: Any, optimiser: torch.optim.Optimizer, *, rank: int,
               world: int) -> ResumePoint:
    """Restore a checkpoint into `model`, `optimiser` and the random generators.

    Raises `FssError` if the checkpoint says something else of itself than `identity`, or if it is incomplete.
    """
    about = _about(folder)
    check_identity(about, identity, where=str(folder))
    model.load_trainable_state(load_file(folder / "model.safetensors"))
    optimiser.load_state_dict(torch.load(folder / "optimiser.pt", weights_only=True))
    if about["world"] == world:
        _restore_random(torch.load(folder / f"rank-{rank}.pt", weights_only=True))
    history = History(json.loads((folder / "history.json").read_text()))
    return ResumePoint(step=about["step"], position=about["position"], history=history)


def check_identity(about: Mapping[str, Any], identity: Mapping[str, Any], *, where: str) -> None:
    """Raise `FssError` if `about`, the content of a checkpoint's `about.json`, says something else than `identity`."""
    for key, want in sorted(identity.items()):
        if about.get(key) != want:
            raise FssError(f"the checkpoint is of {_difference(key, about.get(key), want)}", where=where,
                           hint="use another --out, or delete this run's folder")


def _difference(key: str, found: Any, want: Any) -> str:
    if isinstance(found, dict) and isinstance(want, dict):
        return f"other {key} ({', '.join(k for k in {**want, **found} if found.get(k) != want.get(k))})"
    return f"{key} {found!r}, not {want!r}"


def _about(folder: Path) -> dict[str, Any]:
    try:
        about: dict[str, Any] = json.loads((folder / "about.json").read_text())
    except (OSError, ValueError) as error:
        raise FssError("this folder is not a checkpoint of a training run", where=str(folder),
                       hint="delete the folder") from error
    return about


def _random_state() -> dict[str, Any]:
    """The state of every global random generator, in types that `torch.load(weights_only=True)` accepts."""
    name, keys, place, has_gauss, gauss = np.random.get_state()
    version, internal, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(name), [int(k) for k in keys], int(place), int(has_gauss), float(gauss)],
        "python": [version, list(internal), gauss_next],
    }


def _restore_random(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    cuda: Sequence[torch.Tensor] = state["cuda"]
    if cuda and len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(list(cuda))
    name, keys, place, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), place, has_gauss, gauss))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
