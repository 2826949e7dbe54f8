"""The service and the labelling jobs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipelines.config.section import Positive, Section


class ServeConfig(Section):
    """The service."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, lt=65536)  # 0: any free one
    replicas: Positive = 1
    max_replicas: int = Field(0, ge=0)  # replicas for people come and go with the load between the two; 0: they do not
    max_batch: Positive = 8
    wait_s: float = Field(0.02, ge=0)
    max_request_bytes: Positive = 64_000_000
    threads: int = Field(0, ge=0)  # torch threads of a replica; 0: the machine's cores
    roots: list[str] = []  # where photos of jobs started in the console may be; on loopback none means anywhere

    @model_validator(mode="after")
    def _between(self) -> ServeConfig:
        if 0 < self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas is below replicas ({self.replicas})")
        return self


LabelFormat = Literal["coco_polygons", "parquet", "yolo", "semantic", "label_studio", "cvat"]


class LabelConfig(Section):
    """A labelling job."""

    chunk: Positive = 64  # images of one request and one output part
    batch: Positive = 8
    threshold: float = Field(0.5, gt=0, lt=1)  # probability above which a pixel is the object
    in_flight: Positive = 4  # chunks on their way at a time
    overlaps: Literal["keep", "resolve"] = "keep"  # of several classes: each its own mask, or one class a pixel
    pairs: int = Field(0, ge=0, le=4096)  # (class, photo) pairs a call of the model, as whole classes; 0: one class
    formats: list[LabelFormat] = []  # beside labels.json (COCO, run lengths) and failures.parquet
    # of a bundle with a calibrator
    prevalence: float = Field(0.5, gt=0, lt=1)  # share of the photos that show a class, as far as you know
    empty_below: float = Field(0.5, ge=0, le=1)  # probability below which a class is not there: an empty label
    review_below: float = Field(0.5, ge=0, le=1)  # probability of a good mask below which somebody should look
