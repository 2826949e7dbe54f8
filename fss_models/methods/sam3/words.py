"""Class names as ids of SAM 3's text encoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from fss_models.errors import FssError

FILE = "tokenizer.json"
CONTEXT = 32  # ids of a phrase, with those of its start and end


class Tokenizer(Protocol):
    """Whatever turns a phrase into ids, without start and end."""

    def ids(self, phrase: str) -> list[int]:
        """The ids of the phrase's pieces."""


class TokenizerFile:
    """A tokenizer.json of the package `tokenizers`: CLIP's byte pairs, as they come with the weights."""

    def __init__(self, path: str) -> None:
        """Raises `FssError` for a file that is no tokenizer."""
        from tokenizers import Tokenizer as Reader

        try:
            self._reader: Any = Reader.from_file(path)
        except Exception as error:  # the package raises bare exceptions
            raise FssError("is not a tokenizer.json", where=path) from error

    def ids(self, phrase: str) -> list[int]:
        """The ids of the phrase's pieces."""
        return list(self._reader.encode(phrase, add_special_tokens=False).ids)


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The ids that have a meaning of their own; `visual` is the word that stands for no class name."""

    start: int
    end: int
    visual: int

    def encode(self, phrases: list[str], tokenizer: Tokenizer | None) -> tuple[Tensor, Tensor]:
        """Ids [N, 32] and validity [N, 32] of phrases; an empty one is `visual`. Too long ones lose their end."""
        ids, valid = torch.zeros(len(phrases), CONTEXT, dtype=torch.int64), torch.zeros(len(phrases), CONTEXT)
        for row, phrase in enumerate(phrases):
            assert tokenizer is not None or not phrase
            pieces = tokenizer.ids(phrase)[:CONTEXT - 2] if phrase and tokenizer else [self.visual]
            whole = torch.tensor([self.start, *pieces, self.end])
            ids[row, :len(whole)], valid[row, :len(whole)] = whole, 1
        return ids, valid.bool()


def find_tokenizer(given: str, weights: str) -> str:
    """The tokenizer.json that is given, else the one beside the weight file. Raises `FssError` if there is none."""
    beside = Path(weights).with_name(FILE) if weights else None
    if given or (beside and beside.is_file()):
        return given or str(beside)
    raise FssError(f"class names need the tokenizer of SAM 3 ({FILE})",
                   hint=f"put it beside the weight file, or give its place as config.tokenizer_weights, "
                   f"like hf://facebook/sam3/{FILE}")
