"""Iterative Memory Refinement: the pseudo query memory is improved where the support confirms it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from fss_models.methods.fssam.ops import cosine, pool, stretch_map


@dataclass(frozen=True, kw_only=True)
class QueryMemory:
    """The pseudo memory of P queries and the mask it was made with.

    features [P, Cm, g, g], mask [P, g, g]
    """

    features: Tensor
    mask: Tensor


def agreement(features: Tensor, prototype: Tensor) -> Tensor:
    """How much each cell of a memory [..., Cm, g, g] resembles a prototype [..., Cm], stretched: [..., g, g]."""
    return stretch_map(cosine(prototype, features))


def support_agreement(features: Tensor, prototypes: Tensor) -> Tensor:
    """Agreement of the noisy query memory [P, Cm, g, g] with K support prototypes [P, K, Cm], averaged: [P, g, g]."""
    return agreement(features[:, None], prototypes).mean(dim=1)


def refine(noisy: QueryMemory, clean: QueryMemory, confirmed: Tensor, *, rounds: int,
           version: str) -> Iterator[QueryMemory]:
    """The clean memory after each round: cells that the support and the query agree on are filled from the noisy one.

    `confirmed` [P, g, g] is `support_agreement` of the noisy memory; it is not refreshed, as in the released code.
    """
    for _ in range(rounds):
        gate = (agreement(noisy.features, pool(clean.features, clean.mask)) + confirmed - 1).clamp(min=0)
        if version == "v2":
            gate = stretch_map(gate)
        wide = gate[:, None]
        clean = QueryMemory(features=wide * noisy.features + (1 - wide) * clean.features,
                            mask=stretch_map(gate * noisy.mask + (1 - gate) * clean.mask))
        yield clean
