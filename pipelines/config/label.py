"""Recipe sections of the HTTP service (`serve`) and of labelling jobs (`label`)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from pipelines.config.computing import Computing
from pipelines.config.section import Notify, Positive, Section
from pipelines.config.wanted import Wanted


class ServiceSettings(Computing):
    """An HTTP service, wherever it listens: `fss serve`, and the applications of Ray Serve's config files."""

    # Copies of the model; the lower bound for autoscaling where max_replicas is set. auto or 0: for jobs one a GPU, or
    # one a machine in a cluster without GPUs; for people one.
    replicas: Annotated[int, BeforeValidator(lambda v: 0 if v == "auto" else v), Field(ge=0)] = 0
    max_replicas: int = Field(0, ge=0)  # upper bound for autoscaling interactive replicas; 0 disables it
    max_batch: Positive = 8  # photos of concurrent requests in one batch of the model
    wait_s: float = Field(0.02, ge=0)  # seconds that a batch waits for more photos
    max_request_bytes: Positive = 64_000_000  # of a request's body
    threads: int = Field(0, ge=0)  # torch threads of a replica; 0: the number of CPU cores
    # Folders or buckets that jobs started in the console may read. Empty: all of them on loopback, none elsewhere.
    roots: list[str] = []
    # Beginnings of URLs that these jobs may tell of their end. Empty: all on loopback, none elsewhere.
    notify_roots: list[str] = []

    @model_validator(mode="after")
    def _between(self) -> Self:
        if self.preprocessing == "auto":
            raise ValueError("preprocessing auto is for jobs: a service has no photos to compare the masks of")
        if 0 < self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas is {self.max_replicas}, less than replicas ({self.replicas})")
        return self


class Address(Section):
    """Where a service listens."""

    host: str = "127.0.0.1"  # address to listen on; any but loopback needs FSS_TOKEN
    port: int = Field(8000, ge=0, lt=65536)  # 0: any free port


class ServeConfig(ServiceSettings, Address):
    """The HTTP service of `fss serve`."""


LabelFormat = Literal["coco_polygons", "parquet", "yolo", "semantic", "label_studio", "cvat", "labelme"]
AnnotationFormat = Literal["auto", "coco", "yolo", "cvat", "label_studio", "labelme", "pairs"]
ExistingMode = Literal["keep", "fill", "compare"]


class LabelConfig(Wanted, Computing):
    """The labelling jobs of `fss label`: the masks that are wanted, and how the work is cut."""

    chunk: Positive = 64  # photos of one request and one output part
    batch: Positive | Literal["auto"] = 8  # photos in one batch of the model; auto: the fastest of a few, measured
    features: Literal["off", "keep"] = "off"  # keep: what the encoder gives is stored, for labelling the photos again
    in_flight: Positive = 4  # chunks that are processed at the same time
    url_column: str = "url"  # of a list of photos (--images LIST.csv or .parquet)
    id_column: str = ""  # of such a list: your own ids, which come back with the labels; empty: `id`, if there is one
    existing: str = ""  # annotations that are there already: a file or folder of COCO, YOLO, CVAT, Label Studio ...
    # keep: annotated photos keep what they have; fill: masks are kept, whatever has none is labelled; compare: all is
    # labelled, and the annotations lie beside the labels
    existing_mode: ExistingMode = "keep"
    existing_format: AnnotationFormat = "auto"  # of the annotations; auto: told by the files
    existing_classes: dict[str, str] = {}  # a class of the annotations -> its name here, where the names differ
    formats: list[LabelFormat] = []  # written in addition to labels.json (COCO, run lengths) and failures.parquet
    notify: Notify = ""  # URL that is told when a job is done, stopped or failed, signed with FSS_WEBHOOK_SECRET

    @model_validator(mode="after")
    def _of_existing(self) -> Self:
        for key in ("existing_mode", "existing_format", "existing_classes"):
            if not self.existing and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} needs annotations: give their file or folder as existing")
        return self

    @model_validator(mode="after")
    def _kept_whole(self) -> Self:
        if self.tile != 0 and self.features == "keep":
            raise ValueError("features keep is for whole photos, not for tiles (leave out features or tile)")
        return self
