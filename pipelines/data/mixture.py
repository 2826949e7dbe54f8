"""Training clips from several datasets. The dataset of each clip is drawn by weight (SANSA's generalist training)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fss_models.errors import FssError
from pipelines.data.schema import EpisodeSample
from pipelines.data.stream import EpisodeStream

OpenPart = Callable[[Any], EpisodeStream]  # position or None -> a stream that gives one clip per rank at a time


class MixedStream:
    """An endless iterator over this rank's clips of each global batch.

    The dataset of a clip depends only on (seed, step, place in the rank's share) and not on the rank. So all ranks read
    equally far in each dataset, and the position of a dataset is the same on every rank. Raises `FssError` for a batch
    that the ranks cannot share equally and for a position of another mixture.
    """

    def __init__(
        self, parts: Sequence[OpenPart], weights: Sequence[float], *, batch: int, seed: int, world: int = 1,
        position: dict[str, Any] | None = None,
    ) -> None:
        if batch % world:
            raise FssError(f"train.batch={batch} cannot be shared by {world} workers",
                           hint=f"make it a multiple of {world}")
        start = position or {"step": 0, "parts": [None] * len(parts)}
        if len(start.get("parts", ())) != len(parts):
            raise FssError("the checkpoint's position in the data belongs to another mixture",
                           hint="resume with the same recipe, or start a new run")
        self._weights = np.array(weights) / sum(weights)
        self._share, self._seed, self._step = batch // world, seed, int(start["step"])
        self._parts = [begin(at) for begin, at in zip(parts, start["parts"], strict=True)]

    @property
    def position(self) -> dict[str, Any]:
        """The position after the last batch that was returned: {"step", "parts": one position per dataset}."""
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
