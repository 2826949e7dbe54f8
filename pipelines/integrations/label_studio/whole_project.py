"""Predictions for all tasks of a project, as a job that can be stopped at any moment and run again.

Label Studio itself is the ledger: a task with a prediction of the job's model version is done. The job's classes are
kept in the workspace, so that annotations which people add meanwhile do not change its model version half-way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from fss_models.errors import FssError
from fss_models.limits import LIMITS
from pipelines.base.progress import Bar, say
from pipelines.base.storage import Store, join
from pipelines.base.workspace import Workspace
from pipelines.config.mask_request import MaskRequest
from pipelines.inference.masks import PhotoFailure
from pipelines.inference.supports import SupportSet, load_support_set
from pipelines.integrations.label_studio.api import LabelStudio, NoAnswerError, Task
from pipelines.integrations.label_studio.backend import READERS, BridgeOptions, classes_line, model_version
from pipelines.integrations.label_studio.interface import Interface, read_interface
from pipelines.integrations.label_studio.results import Drawing
from pipelines.integrations.label_studio.supports import gather_supports
from pipelines.labelling.engines import Engine, service_engine
from pipelines.labelling.job import label_rows
from pipelines.serving.client import reach_service

CHUNK = 32  # tasks whose predictions are stored together
ATTEMPTS = 5  # to store them
REASONS = 3  # that are named of photos without a prediction


@dataclass(frozen=True, kw_only=True)
class WholeProject:
    """The options of `fss integrations label-studio-predict`.

    workspace  where the job's classes are kept
    restart    begin with the present annotations, also if an earlier job of the project is not finished
    limit      only so many tasks; 0: all
    """

    service: str
    studio: str
    project: int
    workspace: str
    options: BridgeOptions
    restart: bool = False
    limit: int = 0

    @property
    def record(self) -> Store:
        """The file about the project's job."""
        return Store(join(Workspace(self.workspace).store.url, "label_studio", f"project-{self.project}.json"))


@dataclass(frozen=True)
class TaskRows:
    """The tasks of one chunk as `label_rows` reads and labels them: rows are places in `tasks`."""

    studio: LabelStudio
    interface: Interface
    tasks: Sequence[Task]
    mask_request: MaskRequest
    pool: ThreadPoolExecutor
    batch: int = 8
    max_pixels: int = LIMITS.max_pixels
    max_bytes: int = LIMITS.max_bytes

    def read(self, rows: Sequence[int]) -> list[bytes | PhotoFailure]:
        """The photos of tasks, or why they cannot be read."""
        return list(self.pool.map(self._one, rows))

    def _one(self, row: int) -> bytes | PhotoFailure:
        try:
            reference = self.interface.photo(self.tasks[row])
        except FssError as error:
            return PhotoFailure(reason=error.what, stage="read")
        return self.studio.photo(reference)


def predict_project(request: WholeProject) -> dict[str, Any]:
    """Store a prediction for every task that has none of the job's model version. Returns a summary.

    Raises `FssError` for a person's mistakes, and when Label Studio or the service is away for long.
    """
    health = reach_service(request.service)
    studio = LabelStudio(request.studio)
    try:
        where = f"{studio.url}projects/{request.project}"
        interface = read_interface(studio.project(request.project), where)
        classes = _job_classes(request, studio, interface, health)
        version = model_version(health, classes, request.options)
        say(f"{classes_line(classes)}; model version {version}")
        with (service_engine(request.service, classes, health["max_request_bytes"], health["bundle_id"]) as engine,
              ThreadPoolExecutor(READERS, thread_name_prefix="read") as pool):
            made, failures = _predict_tasks(request, studio, interface, classes, version, engine, pool)
    finally:
        studio.close()
    if not request.limit:
        request.record.write_json("", {**request.record.read_json(), "finished": True})
    reasons = [f"{n} x {reason}" for reason, n in Counter(failures.values()).most_common(REASONS)]
    return {"project": request.project, "model_version": version, "predictions": made, "failed": len(failures),
            "reasons": reasons, "classes": {s.class_name: s.support_id for s in classes}}


def _job_classes(request: WholeProject, studio: LabelStudio, interface: Interface,
                 health: dict[str, Any]) -> list[SupportSet]:
    """The classes of the project's unfinished job, or those that its annotations show now."""
    root, record = Workspace(request.workspace).supports, request.record
    same: dict[str, Any] = {"studio": studio.url, "bundle_id": health["bundle_id"],
                            "calibrator": health.get("calibrator", ""), **asdict(request.options)}
    kept: dict[str, Any] = record.read_json() if record.exists() else {"finished": True}
    if not kept["finished"] and not request.restart:
        if differs := next((key for key, value in same.items() if kept.get(key) != value), ""):
            raise FssError(f"an unfinished job of the project has {differs} {kept.get(differs)!r}, not "
                           f"{same[differs]!r}", where=record.url, hint="give --restart to begin a new one")
        say("going on with the unfinished job and its supports; --restart begins a new one")
        return [load_support_set(root, name) for name in kept["support_ids"]]
    found = gather_supports(studio, request.project, interface, health, shots=request.options.shots, known={})
    for one in found.classes:
        one.save(root)
    record.write_json("", {**same, "support_ids": [s.support_id for s in found.classes], "finished": False})
    return list(found.classes)


def _predict_tasks(request: WholeProject, studio: LabelStudio, interface: Interface, classes: Sequence[SupportSet],
                   version: str, engine: Engine, pool: ThreadPoolExecutor) -> tuple[int, dict[int, str]]:
    """(number of predictions that were stored, why other tasks have none)."""
    drawing, names = Drawing(interface, request.options.shape), [s.class_name for s in classes]
    wanted = request.options.request(classes)
    made, failures = 0, {}
    total = studio.tasks_without(request.project, version, count=1)[1]
    with Bar("predict", min(total, request.limit or total), unit="tasks") as bar:
        for tasks in _chunks(studio, request, version):
            rows = TaskRows(studio, interface, tasks, wanted, pool)
            found = dict(zip((int(t["id"]) for t in tasks), label_rows(range(len(tasks)), engine, rows, rows),
                             strict=True))
            failed = {number: one.reason for number, one in found.items() if isinstance(one, PhotoFailure)}
            _store(studio, request.project, version, [
                {"task": number, **drawing.prediction(names, one, version)} for number, one in found.items()
                if not isinstance(one, PhotoFailure)])
            failures.update(failed)
            made += len(tasks) - len(failed)
            bar.step(len(tasks))
    return made, failures


def _chunks(studio: LabelStudio, request: WholeProject, version: str) -> Iterator[list[Task]]:
    """The tasks without a prediction, some at a time, by their ids."""
    last, left = 0, request.limit or 1 << 62
    while left > 0:
        tasks, _ = studio.tasks_without(request.project, version, after=last, count=min(CHUNK, left))
        if not tasks:
            return
        yield tasks
        last, left = int(tasks[-1]["id"]), left - len(tasks)


def _store(studio: LabelStudio, project: int, version: str, predictions: list[dict[str, Any]]) -> None:
    """Store predictions, each once: after a request without an answer, only those that are not there."""
    again = Retrying(stop=stop_after_attempt(ATTEMPTS), wait=wait_exponential_jitter(initial=0.5, max=10),
                     retry=retry_if_exception_type(NoAnswerError), reraise=True)
    for attempt in again:
        with attempt:
            if attempt.retry_state.attempt_number > 1:
                predictions = _missing(studio, project, version, predictions)
            if predictions:
                studio.import_predictions(project, predictions)


def _missing(studio: LabelStudio, project: int, version: str,
             predictions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those predictions whose task has none of the model version."""
    numbers = [p["task"] for p in predictions]
    tasks, _ = studio.tasks_without(project, version, after=min(numbers) - 1, until=max(numbers), count=CHUNK)
    left = {int(task["id"]) for task in tasks}
    return [p for p in predictions if p["task"] in left]
