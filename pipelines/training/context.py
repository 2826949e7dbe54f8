"""A run and what surrounds it, as one value that travels to its workers."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict

from pipelines.base.storage import join
from pipelines.config.run import RunSpec
from pipelines.config.section import Section

SELECTION_FILE = "selection.json"  # in a run's folder, where its number of steps was chosen


class RunContext(Section):
    """A run and what surrounds it: where results go and what it may use."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)
    spec: RunSpec
    runs: str  # URL of the workspace's run folders
    threads: int = 1  # torch threads of a worker
    cpus: float = 1.0
    gpus: float = 0.0
    retries: int = 0
    tracker: Any = None  # handle of the tracking actor
    key: str = ""  # the run that the tracker hears of, where this is a part of it
    stage: str = "training"  # what the table says meanwhile
    stop: int = 0  # steps, where they were chosen; 0: the spec's
    grid: tuple[int, ...] = ()  # steps at which the tensors are kept; no bundle is written then
    features: str = ""  # URL of kept features (`train.features`)
    feature_pool: int = 512_000_000  # bytes of them held in memory

    @property
    def folder(self) -> str:
        """The run's folder."""
        return join(self.runs, self.spec.name)

    @property
    def bundle(self) -> str:
        """The run's bundle."""
        return join(self.folder, "bundle")

    @property
    def label(self) -> str:
        """The name under which the run is tracked."""
        return self.key or self.spec.name

    def tell(self, method: str, *args: Any) -> None:
        """Call the tracking actor without waiting."""
        if self.tracker is not None:
            getattr(self.tracker, method).remote(*args)
