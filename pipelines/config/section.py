"""The base class of all sections of a recipe, and types that they share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from fss_models.forms import in_words

LONG = {"fp32": "float32", "bf16": "bfloat16"}  # older spellings of a training's precision, and today's
SHORT = {long: short for short, long in LONG.items()}
Positive = Annotated[int, Field(gt=0)]
TrainPrecision = Annotated[Literal["float32", "bfloat16"],
                           BeforeValidator(lambda v: LONG.get(v, v) if isinstance(v, str) else v)]
Notify = Annotated[str, Field(pattern=r"^(https?://[^\s]+)?$", max_length=2000), in_words(
    "notify is no http:// or https:// URL")]
PromptName = Literal["mask", "point", "box", "scribble", "multi"]


class Section(BaseModel):
    """Base class of all sections of a recipe: unknown keys are errors, and values cannot be changed after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def as_named(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a training as the names of runs contain them: the precision in its older spelling, for older runs."""
    return {**settings, "precision": SHORT[settings["precision"]]} if "precision" in settings else settings
