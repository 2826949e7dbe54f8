"""How a model computes masks: settings that recipes, services and jobs share."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from fss_models.precision import Precision
from pipelines.config.section import Section

Preprocessing = Literal["bundle", "auto", "published", "fast"]


class Computing(Section):
    """How masks are computed; everything here may change a few of their pixels.

    precision      auto: bfloat16 where the device computes in it, else float32; the choice is recorded
    compile        torch.compile of `encode` and `segment`, once for each shape of a batch
    preprocessing  of the photos that are labelled. bundle: as the bundle's model was made for (bundle.json says which).
                   published: resized from all pixels, as the papers' code does. fast: JPEGs are decoded at a fraction
                   of their size, but at least twice the model's. auto, for jobs: fast where it gives the same masks
    """

    precision: Precision = Field("float32", description="auto: bfloat16 where the device computes in it")
    compile: bool = Field(False, description="torch.compile of the model, once for each shape of a batch")
    preprocessing: Preprocessing = Field("bundle", description=(
        "bundle: as the bundle was made for; published: resized from all pixels; fast: JPEGs are decoded at a fraction "
        "of their size; auto, for jobs: fast where it gives the same masks"))

    def computing(self) -> dict[str, Any]:
        """The settings of this section alone, without those of the class that inherits it."""
        return {name: getattr(self, name) for name in Computing.model_fields}
