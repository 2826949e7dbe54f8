"""Hyperband (Li et al., JMLR 2018): the brackets of a search, the steps of its rungs, and what all of it costs.

A bracket is a group of trials that are chosen together and compared at rungs, numbers of steps that grow by the factor
`search.eta`. At each rung one trial in `eta` goes on, the others end. Brackets begin at different rungs, so that some
trials are judged early and some late. Nothing of this depends on scores or times: the cost is known beforehand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fss_models.errors import FssError
from pipelines.config.sweep import SearchConfig


@dataclass(frozen=True)
class Bracket:
    """A group of trials: the number of trials that are scored at each rung, from rung `first` on."""

    first: int
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class SearchCost:
    """The work of a search of one method: a run is one trial on one fold."""

    runs: int
    steps: int  # optimiser steps of all runs together
    scorings: int  # evaluations on held-out episodes


def rung_steps(config: SearchConfig, steps: int) -> tuple[int, ...]:
    """The number of steps at each rung; the last is `steps`, that of a whole training.

    Raises `FssError` for a training that is too short for so many rungs.
    """
    found = tuple(round(steps / config.eta ** k) for k in reversed(range(config.rungs)))
    if len({0, *found}) <= config.rungs:
        raise FssError(f"{steps} training steps are too few for search.rungs={config.rungs}, each {config.eta} times "
                       "the one before", hint="lower search.rungs or raise train.steps")
    return found


def brackets_of(config: SearchConfig) -> list[Bracket]:
    """The brackets of `search.trials` trials, repeated and cut as their number requires."""
    found: list[Bracket] = []
    left, number = config.trials, 0
    while left > 0:
        first = number % config.rungs
        further = config.rungs - first
        size = min(left, math.ceil(config.rungs / further * config.eta ** (further - 1)))
        found.append(_bracket(config, first, size))
        left, number = left - size, number + 1
    return found


def _bracket(config: SearchConfig, first: int, size: int) -> Bracket:
    if not config.stop_early:
        return Bracket(config.rungs - 1, (size,))
    sizes = [size]
    for _ in range(config.rungs - first - 1):
        sizes.append(max(1, sizes[-1] // config.eta))
    return Bracket(first, tuple(sizes))


def search_cost(config: SearchConfig, steps_by_fold: list[int]) -> SearchCost:
    """The cost of a search of one method; `steps_by_fold` are the steps of a whole training on each fold."""
    brackets, total, scorings = brackets_of(config), 0, 0
    for steps in steps_by_fold:
        rungs = rung_steps(config, steps)
        for bracket in brackets:
            before = 0
            for rung, size in enumerate(bracket.sizes, start=bracket.first):
                total += size * (rungs[rung] - before)
                scorings += size * (bracket.first + 1 if not before else 1)
                before = rungs[rung]
    return SearchCost(runs=config.trials * len(steps_by_fold), steps=total, scorings=scorings)
