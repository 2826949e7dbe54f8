"""Support sets from a project's annotated tasks: for each class the photos that were annotated last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from fss_models.clip import PromptKind
from fss_models.errors import FssError
from fss_models.marks import Mark, mark_kind
from fss_models.registry import method_class
from fss_models.segmenter import Segmenter
from pipelines.base.progress import say
from pipelines.data.sources.label_studio_regions import chosen_annotation
from pipelines.inference.masks import PhotoFailure
from pipelines.inference.supports import Support, SupportSet, build_support_set
from pipelines.integrations.label_studio.api import LabelStudio
from pipelines.integrations.label_studio.interface import Interface
from pipelines.integrations.label_studio.marks import read_marks

SEEN = 1000  # annotated tasks that are looked at, the last ones, so that a class without enough supports ends too
_REQUEST_SHARE = 0.6  # of a request's bytes that photos may have: base64 and JSON take the rest


@dataclass(frozen=True)
class Learnt:
    """The support sets of a project's classes; `photos` are their photos, by task and reference."""

    classes: tuple[SupportSet, ...]
    photos: Mapping[tuple[int, str], bytes]


@dataclass
class _Gathered:
    """Supports while they are gathered: (task, support) by class, the newest first; kinds that are left out."""

    method: type[Segmenter]
    shots: int
    max_bytes: int
    rows: dict[str, list[tuple[int, Support]]] = field(default_factory=dict)
    refused: set[PromptKind] = field(default_factory=set)

    def readable(self, marks: Sequence[Mark]) -> list[Mark]:
        """The marks of kinds that the method reads."""
        self.refused |= {mark_kind(m) for m in marks} - set(self.method.prompt_kinds)
        return [m for m in marks if mark_kind(m) in self.method.prompt_kinds]

    def room(self, name: str, more: int) -> bool:
        """Whether a class takes one more support, of so many bytes."""
        own = self.rows.get(name, [])
        return len(own) < self.shots and sum(len(s.image) for _, s in own) + more <= self.max_bytes


def gather_supports(studio: LabelStudio, project_id: int, interface: Interface, health: dict[str, Any], *, shots: int,
                    known: Mapping[tuple[int, str], bytes]) -> Learnt:
    """The support sets of the classes that have annotations, of the `shots` newest photos with each class.

    `health` is that of the service, `known` photos are not read again. A task that cannot be read, and kinds of marks
    that the service's method does not read, are named on standard error and left out. Raises `FssError` if no task is
    annotated with a class that the interface has masks for, or none in a way that the method reads.
    """
    found = _Gathered(method_class(health["method"]), shots, int(health["max_request_bytes"] * _REQUEST_SHARE))
    photos: dict[tuple[int, str], bytes] = {}
    for task in islice(studio.annotated_tasks(project_id), SEEN):
        try:
            _take(task, studio, interface, found, photos, known)
        except FssError as error:
            say(f"task {task.get('id', '?')} is no support: {error}")
        if all(len(found.rows.get(name, [])) >= shots for name in interface.labels):
            break
    classes = [SupportSet(name, tuple(s for _, s in sorted(found.rows[name], key=lambda row: row[0])))
               for name in interface.labels if name in found.rows]
    for kind in sorted(found.refused):
        try:
            found.method.check_kind(kind)
        except FssError as error:
            if not classes:
                raise
            say(f"project {project_id}: some annotations are no supports: {error}")
    if not classes:
        raise FssError(f"no task of project {project_id} is annotated yet", where=studio.url,
                       hint=f"mark one of {', '.join(interface.labels[:5])} in a photo and submit it")
    return Learnt(tuple(classes), photos)


def _take(task: dict[str, Any], studio: LabelStudio, interface: Interface, found: _Gathered,
          photos: dict[tuple[int, str], bytes], known: Mapping[tuple[int, str], bytes]) -> None:
    """Add what a task's annotation marks to the supports."""
    annotation = chosen_annotation(task)
    marks = read_marks(annotation.get("result") or [], interface.image) if annotation else {}
    wanted = {name: read for name, rows in marks.items() if name in interface.labels and found.room(name, 0)
              and (read := found.readable(rows))}
    if not wanted:
        return
    place = (int(task["id"]), interface.photo(task))
    photo = known.get(place) or studio.photo(place[1])
    if isinstance(photo, PhotoFailure):
        raise FssError(f"its photo cannot be read: {photo.reason}")
    for name, rows in wanted.items():
        for support in checked_supports(name, photo, rows):
            if found.room(name, len(photo)):
                found.rows.setdefault(name, []).append((place[0], support))
                photos[place] = photo


def checked_supports(name: str, photo: bytes, marks: Sequence[Mark]) -> tuple[Support, ...]:
    """The supports that marks on a photo are. Raises `FssError` for marks that do not fit the photo."""
    return build_support_set(name, [(photo, mark) for mark in marks]).supports
