"""The console's answers, as models that FastAPI checks them with and describes them by."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipelines.console.records import State
from pipelines.serving.answers import Answer, Share, Whole


class Job(Answer):
    """A labelling job and its progress."""

    job_id: str
    title: str
    classes: list[str]
    photos: Whole
    images: str
    out: str
    started: float
    origin: str = Field(description="the job whose doubtful labels this one redoes")
    command: str = Field(description="the same job from the command line")
    state: State
    done: Whole
    failed: Whole = Field(description="photos that could not be read")
    rate: float = Field(description="photos per second")
    left_s: float | None
    error: str
    stopping: bool


class JobList(Answer):
    """All jobs, the newest first."""

    jobs: list[Job]


class ShownInstance(Answer):
    """One object of a label; what a person added has neither number nor score."""

    number: Whole | None = Field(description="for decisions about this instance alone")
    counts: str
    score: float | None


class LabelRow(Answer):
    """One label and the decision about it."""

    image_id: Whole
    image: str
    class_name: str
    height: Whole
    width: Whole
    sure: float = Field(description="probability that the label is right, or the uncalibrated score")
    calibrated: bool
    empty: bool
    counts: str
    instances: list[ShownInstance] | None = Field(description="null in jobs without instances")
    decision: Literal["", "accept", "reject", "correct"]


class LabelsPage(Answer):
    """A page of labels, the most doubtful first."""

    labels: list[LabelRow]
    page: Whole
    pages: Whole
    shown: Whole
    total: Whole
    decided: Whole
    review_below: Share


class Decided(Answer):
    """How many labels have a decision now."""

    decided: Whole
