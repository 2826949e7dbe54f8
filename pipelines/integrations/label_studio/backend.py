"""What the machine-learning backend does: it learns a project's classes and answers with predictions for its tasks."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from fss_models.errors import FssError
from pipelines.base.progress import say
from pipelines.config.mask_request import MaskRequest
from pipelines.inference.masks import Labels, PhotoFailure
from pipelines.inference.supports import SupportSet
from pipelines.integrations.label_studio.api import LabelStudio
from pipelines.integrations.label_studio.interface import Interface, Shape, read_interface
from pipelines.integrations.label_studio.marks import read_marks
from pipelines.integrations.label_studio.results import Drawing
from pipelines.integrations.label_studio.supports import Learnt, checked_supports, gather_supports
from pipelines.serving.client import Client, ServiceError

READERS = 8  # threads that read photos
TOGETHER = 32  # photos that are in memory at a time


@dataclass(frozen=True, kw_only=True)
class BridgeOptions:
    """What is asked of the bridge: largest number of supports a class, shape (None: the interface's), threshold."""

    shots: int = 10
    shape: Shape | None = None
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise FssError(f"--threshold {self.threshold:g} is no probability", hint="give one between 0 and 1")

    def request(self, classes: Sequence[SupportSet]) -> MaskRequest:
        """The masks that are wanted of a photo."""
        return MaskRequest(support_ids=tuple(s.support_id for s in classes), threshold=self.threshold)


@dataclass
class Project:
    """A project as it was learnt last."""

    interface: Interface
    learnt: Learnt = field(default_factory=lambda: Learnt((), {}))
    lock: threading.Lock = field(default_factory=threading.Lock)


class Backend:
    """Learns projects of one Label Studio and predicts with one service. Its methods may be called from threads."""

    def __init__(self, studio: LabelStudio, service: Client, options: BridgeOptions) -> None:
        self._studio, self._service, self.options = studio, service, options
        self._projects: dict[int, Project] = {}
        self._waiting: set[int] = set()
        self._lock = threading.Lock()
        self._learner = ThreadPoolExecutor(1, thread_name_prefix="learn")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="read")

    def close(self) -> None:
        """End what is being learnt, stop the threads and close the connections."""
        self._learner.shutdown(wait=True, cancel_futures=True)
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._studio.close()
        self._service.close()

    def set_up(self, project_id: int) -> str:
        """Check a project's interface, and look for new annotations in the background. Returns the model version."""
        interface = self._interface(project_id)
        with self._lock:
            project = self._projects.setdefault(project_id, Project(interface))
            project.interface = interface
        self.learn_soon(project_id)
        return model_version(self._service.health(), project.learnt.classes, self.options)

    def learn_soon(self, project_id: int) -> None:
        """Learn a project's annotations in the background; what fails is said on standard error."""
        with self._lock:
            if project_id in self._waiting:
                return
            self._waiting.add(project_id)
        self._learner.submit(self._learn_waiting, project_id)

    def predict(self, project_id: int, tasks: Sequence[dict[str, Any]],
                drawn: Sequence[dict[str, Any]] = ()) -> tuple[list[Any], str]:
        """(a prediction for each task, [] for one whose photo cannot be read; the model version).

        `drawn` are regions that a person has just drawn on the only task: their classes alone are predicted, with them
        as further supports. Raises `FssError` for a project without annotations.
        """
        project = self._projects.get(project_id)
        if project is None:
            project = self._projects.setdefault(project_id, Project(self._interface(project_id)))
        if drawn:
            classes = self._with_drawn(project, tasks, drawn)
        else:
            if not project.learnt.classes:
                self.learn(project_id)
            classes = project.learnt.classes
        health = self._service.health()
        version = model_version(health, classes, self.options)
        drawing, names = Drawing(project.interface, self.options.shape), [s.class_name for s in classes]
        found: list[Any] = []
        for start in range(0, len(tasks), TOGETHER):
            part = tasks[start:start + TOGETHER]
            for task, labels in zip(part, self._label(project, part, classes, health), strict=True):
                if isinstance(labels, PhotoFailure):
                    say(f"task {task.get('id', '?')} has no prediction: {labels.reason}")
                found.append([] if isinstance(labels, PhotoFailure) else drawing.prediction(names, labels, version))
        return found, version

    def learn(self, project_id: int) -> None:
        """Take the project's annotations as supports. Raises `FssError` if there are none."""
        project = self._projects[project_id]
        with project.lock:
            health = self._service.health()
            found = gather_supports(self._studio, project_id, project.interface, health, shots=self.options.shots,
                                    known=project.learnt.photos)
            if found.classes == project.learnt.classes:
                return
            for supports in found.classes:
                self._service.add_support(supports)
            project.learnt = found
        say(f"project {project_id}: {classes_line(found.classes)}, model version "
            f"{model_version(health, found.classes, self.options)}")

    def _learn_waiting(self, project_id: int) -> None:
        with self._lock:
            self._waiting.discard(project_id)  # what changes from now on is learnt once more
        try:
            if project_id not in self._projects:
                self._projects.setdefault(project_id, Project(self._interface(project_id)))
            self.learn(project_id)
        except Exception as error:  # the thread goes on with the next project
            say(f"project {project_id} is not learnt: {error}")

    def _interface(self, project_id: int) -> Interface:
        return read_interface(self._studio.project(project_id), f"{self._studio.url}projects/{project_id}")

    def _photo(self, interface: Interface, task: dict[str, Any]) -> bytes | PhotoFailure:
        try:
            return self._studio.photo(interface.photo(task))
        except FssError as error:
            return PhotoFailure(reason=str(error), stage="read")

    def _with_drawn(self, project: Project, tasks: Sequence[dict[str, Any]],
                    drawn: Sequence[dict[str, Any]]) -> tuple[SupportSet, ...]:
        """The support sets of the classes that are drawn, with the photo itself and what is drawn on it first."""
        if len(tasks) != 1:
            raise FssError(f"regions are drawn on one task, the request has {len(tasks)}")
        photo = self._photo(project.interface, tasks[0])
        if isinstance(photo, PhotoFailure):
            raise FssError(f"the photo cannot be read: {photo.reason}")
        learnt = {s.class_name: s.supports for s in project.learnt.classes}
        marks = {name: rows for name, rows in read_marks(list(drawn), project.interface.image).items()
                 if name in project.interface.labels}
        if not marks:
            raise FssError("nothing that is drawn has a class with masks", hint="choose a label before drawing")
        classes = []
        for name, rows in marks.items():
            own = checked_supports(name, photo, rows)
            classes.append(SupportSet(name, (own + learnt.get(name, ()))[:self.options.shots]))
            self._service.add_support(classes[-1])
        return tuple(classes)

    def _label(self, project: Project, tasks: Sequence[dict[str, Any]], classes: Sequence[SupportSet],
               health: dict[str, Any]) -> list[Labels | PhotoFailure]:
        """The labels of each task's photo, or why it has none. A request has as many photos as the service takes."""
        limit = health["max_request_bytes"] * 3 // 4 - 65_536  # less base64 and JSON
        photos = list(self._readers.map(lambda task: self._photo(project.interface, task), tasks))
        found: list[Labels | PhotoFailure] = []
        sent: list[bytes] = []
        for photo in photos:
            if isinstance(photo, bytes) and len(photo) <= limit and sum(map(len, sent)) + len(photo) <= limit:
                sent.append(photo)
                continue
            found += self._segment(sent, classes)
            sent = []
            if isinstance(photo, PhotoFailure):
                found.append(photo)
            elif len(photo) > limit:
                found.append(PhotoFailure(reason=f"{len(photo)} bytes are more than a request may hold", stage="send"))
            else:
                sent = [photo]
        return found + self._segment(sent, classes)

    def _segment(self, photos: list[bytes], classes: Sequence[SupportSet]) -> list[Labels | PhotoFailure]:
        """The labels of photos. Support sets that the service does not have any more are sent again."""
        if not photos:
            return []
        request = self.options.request(classes)
        try:
            return self._service.segment_classes(photos, request)
        except ServiceError as error:
            if error.status != 404:
                raise
        for supports in classes:
            self._service.add_support(supports)
        return self._service.segment_classes(photos, request)


def model_version(health: dict[str, Any], classes: Sequence[SupportSet], options: BridgeOptions) -> str:
    """A name for what determines predictions: bundle, calibrator, support sets, threshold and shape.

    The backend and the job for a whole project give the same name, so neither repeats the other's work.
    """
    parts = [health["bundle_id"], health.get("calibrator", ""), options.threshold, options.shape,
             [[s.class_name, s.support_id] for s in classes]]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:10]
    return f"{health['method']}-{health['preset']}-{digest}"


def classes_line(classes: Sequence[SupportSet]) -> str:
    """The classes and the number of supports of each, for people."""
    return ", ".join(f"{s.class_name} ({len(s.supports)} supports)" for s in classes[:8]) + (
        f" and {len(classes) - 8} more classes" if len(classes) > 8 else "")
