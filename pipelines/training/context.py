"""The context of a run, as one value that is sent to the workers of the run."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict

from pipelines.base.storage import join
from pipelines.config.run import RunSpec
from pipelines.config.section import Section

SELECTION_FILE = "selection.json"  # in a run's folder: how its number of steps was chosen (`train.selection`)


class BaseRun(Section):
    """A run of any kind: its settings, the place of its results, and the resources that it may use."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)
    spec: Any  # its `name`, and how it is trained (`train`, a `TrainConfig`), beside what its kind of run needs
    runs: str  # URL of the workspace's run folders
    threads: int = 1  # torch threads of a worker
    cpus: float = 1.0  # of all its workers together
    gpus: float = 0.0  # of all its workers together
    retries: int = 0
    tracker: Any = None  # handle of the tracking actor
    key: str = ""  # name of the run in the tracking store, where it is not the spec's: a selection belongs to its run
    stage: str = "training"  # stage that the table of the sweep shows

    @property
    def folder(self) -> str:
        """URL of the run's folder."""
        return join(self.runs, self.spec.name)

    @property
    def label(self) -> str:
        """Name of the run in the tracking store."""
        return self.key or self.spec.name

    def track(self, method: str, *args: Any) -> None:
        """Call a method of the tracking actor without waiting; does nothing for a run without a tracker."""
        if self.tracker is not None:
            getattr(self.tracker, method).remote(*args)


class RunContext(BaseRun):
    """A run of a method that learns from episodes."""

    spec: RunSpec
    stop: int = 0  # number of steps, where it was chosen; 0: the spec's
    grid: tuple[int, ...] = ()  # steps whose trained tensors are stored; with a grid no bundle is written
    learners: str = ""  # URL of the folder of base learners' runs
    features: str = ""  # URL of the kept features (`train.features`)
    feature_pool: int = 512_000_000  # largest number of bytes of kept features in memory

    @property
    def bundle(self) -> str:
        """URL of the run's bundle."""
        return join(self.folder, "bundle")

    @property
    def worker_resources(self) -> dict[str, float]:
        """CPUs and GPUs of one worker: all that one machine is sure to have for the tasks that score the run."""
        workers = self.spec.train.workers if self.spec.trains else 1
        return {"cpus": self.cpus / workers, "gpus": self.gpus / workers}
