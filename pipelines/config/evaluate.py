"""The fixed episode list that methods are scored on."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from pipelines.config.section import Positive, PromptName, Section


class EvalConfig(Section):
    """A fixed episode list: drawn once, or `list`, the URL of a published one ({fold} in it is the fold's number)."""

    list: str = ""
    episodes: Positive = 100  # a fold and draw
    draws: Positive = 1  # lists of so many episodes, drawn with seed, seed + 1, ...; the score is over all of them
    shots: Positive = 1
    seed: int = 0
    batch: Positive = 8
    prompts: PromptName = "mask"  # how supports are marked; drawn from their masks, the same for every method
    at: Literal["original", "square"] = "original"  # the size at which masks are compared; square: as SANSA's code does

    @model_validator(mode="after")
    def _a_list_decides(self) -> EvalConfig:
        for key in ("episodes", "draws", "shots", "seed") if self.list else ():
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"eval.list has its own {key}; eval.{key} would be ignored")
        return self
