"""The evaluation: a fixed episode list that methods are scored on."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from fss_models.precision import Precision
from pipelines.config.section import Positive, PromptName, Section


class EvalConfig(Section):
    """The episode list that methods are scored on, drawn once or read from a file, and how masks are compared."""

    list: str = ""  # URL of a published list; {fold} in it stands for the fold's number; empty: a list is drawn
    episodes: Positive = 100  # episodes of a fold in one draw
    draws: Positive = 1  # number of draws, with seed, seed + 1, ...; the score is over the episodes of all draws
    shots: Positive = 1  # supports of a query
    seed: int = 0  # seed of the draw
    batch: Positive = 8  # episodes segmented at a time
    prompts: PromptName = "mask"  # how supports are marked; drawn from their masks, equally for all methods
    precision: Precision = "float32"  # auto: bfloat16 where the device computes in it; recorded in every result
    at: Literal["original", "square"] = "original"  # size at which masks are compared; square: as SANSA's code does

    @model_validator(mode="after")
    def _a_list_decides(self) -> EvalConfig:
        for key in ("episodes", "draws", "shots", "seed") if self.list else ():
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"eval.list decides the {key}: eval.{key} would be ignored")
        return self
