"""Training clips from several datasets, each clip's dataset drawn by weight (SANSA's generalist training)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fss_models.errors import FssError
from pipelines.data.schema import EpisodeSample
from pipelines.data.stream import EpisodeStream

OpenPart = Callable[[Any], EpisodeStream]  # (position or None): one clip a rank at a time


class MixedStream:
    """An endless iterator of this rank's clips of each global batch.

    Which dataset a clip is of depends on (seed, step, place in the batch) alone, alike on every rank, so that all
    ranks read a dataset equally far: its position is one number for all. Raises `FssError` for a batch that the ranks
    cannot share and for a position of another mixture.
    """

    def __init__(
        self, parts: Sequence[OpenPart], weights: Sequence[float], *, batch: int, seed: int, world: int = 1,
        position: dict[str, Any] | None = None,
    ) -> None:
        if batch % world:
            raise FssError(f"train.batch={batch} cannot be shared by {world} workers", mend="make it a multiple")
        held = position or {"step": 0, "parts": [None] * len(parts)}
        if len(held.get("parts", ())) != len(parts):
            raise FssError("the checkpoint's place in the data is of another mixture",
                           mend="resume with the same recipe, or start a new run")
        self._weights = np.array(weights) / sum(weights)
        self._share, self._seed, self._step = batch // world, seed, int(held["step"])
        self._parts = [begin(at) for begin, at in zip(parts, held["parts"], strict=True)]

    @property
    def position(self) -> dict[str, Any]:
        """After the last batch given: {"step", "parts"}."""
        return {"step": self._step, "parts": [p.position for p in self._parts]}

    def __iter__(self) -> MixedStream:
        return self

    def __next__(self) -> list[EpisodeSample]:
        rng = np.random.default_rng([self._seed, self._step])
        drawn = rng.choice(len(self._parts), size=self._share, p=self._weights)
        self._step += 1
        return [next(self._parts[i])[0] for i in drawn]

    def close(self) -> None:
        """Close every dataset's stream."""
        for part in self._parts:
            part.close()
