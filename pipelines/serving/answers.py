"""The service's answers, as models that FastAPI checks them with and describes them by."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Whole = Annotated[int, Field(ge=0)]


class Answer(BaseModel):
    """Base class of answers: nothing is in an answer that its description does not name."""

    model_config = ConfigDict(extra="forbid")


class Error(Answer):
    """Every mistake."""

    error: str = Field(description="one line: what is wrong, and how to correct it")


class Health(BaseModel):
    """The model that is running."""

    model_config = ConfigDict(extra="allow")
    status: str
    bundle_id: str
    method: str
    preset: str
    reads_names: bool = Field(False, description="whether the model is told class names, or their `prompt`")
    negatives: Literal["none", "photos", "marks"] = Field("none", description=(
        "the negative supports that the model uses: none, whole photos, or any"))
    device: str
    batch: Whole
    precision: str
    compile: bool
    preprocessing: str
    max_request_bytes: Whole
    token: bool
    roots: list[str] | None = Field(description="folders and buckets that jobs may read; null: all")
    uptime_s: float
    waiting: Whole


class SupportAnswer(Answer):
    """A stored support set."""

    support_id: str
    class_name: str
    supports: Whole


class Segmentation(Answer):
    """COCO's compressed run lengths."""

    size: list[Whole] = Field(min_length=2, max_length=2, description="[height, width]")
    counts: str


class InstanceAnswer(Answer):
    """One object of a class."""

    segmentation: Segmentation
    score: float
    bbox: list[float] = Field(min_length=4, max_length=4, description="[x, y, width, height]")
    area: Whole


class LabelAnswer(Answer):
    """One mask; presence, quality and status are there if the bundle has a calibrator, instances if asked for."""

    segmentation: Segmentation
    score: float
    bbox: list[float] = Field(min_length=4, max_length=4, description="[x, y, width, height]")
    area: Whole
    presence: Share | None = None
    quality: Share | None = None
    status: Literal["accepted", "review", "empty", "uncalibrated"] = "uncalibrated"
    instances: list[InstanceAnswer] | None = Field(None, description="one mask for each object, by falling score")


class Failure(Answer):
    """Why a photo has no label, and at which stage it failed."""

    error: str
    stage: str


class LabelsAnswer(Answer):
    """The masks of one photo, one for each of the request's `support_ids`."""

    labels: list[LabelAnswer]


class SegmentAnswer(Answer):
    """A result or an error for every photo, in order."""

    support_id: str = ""
    support_ids: list[str] = []
    bundle_id: str
    precision: str = Field(description="in which the masks were computed")
    results: list[LabelAnswer | Failure | LabelsAnswer]
