"""The base class of all sections of a recipe, and types that they share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
PromptName = Literal["mask", "point", "box", "scribble", "multi"]


class Section(BaseModel):
    """Base class of all sections of a recipe: unknown keys are errors, and values cannot be changed after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)
