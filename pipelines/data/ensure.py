"""The shards that a recipe names. Missing ones are built."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.base.workspace import Workspace
from pipelines.config.recipe import Recipe
from pipelines.config.run import MixtureShare
from pipelines.data.shards import build_shards
from pipelines.data.shardset import Shards


def ensure_shards(recipe: Recipe) -> Shards:
    """The shards of `recipe.data`, built now if they are missing."""
    url = Workspace(recipe.out).shards(recipe.data.name)
    build_shards(recipe.data, url)
    return Shards(url)


def ensure_mixture(recipe: Recipe) -> list[Shards]:
    """The shards of the recipe's further datasets, built now if they are missing."""
    return [ensure_shards(recipe.model_copy(update={"data": m.data})) for m in recipe.mixture]


def mixture_shares(recipe: Recipe, mixed: Sequence[Shards]) -> tuple[MixtureShare, ...]:
    """The mixture as a run records it. `mixed` are the shards of the recipe's further datasets, in order."""
    return tuple(MixtureShare(shards=s.url, data_hash=s.manifest.content_hash, weight=m.weight, means=m.means)
                 for s, m in zip(mixed, recipe.mixture, strict=True))
