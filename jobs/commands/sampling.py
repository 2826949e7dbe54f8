"""`fss data sampling`: compare the draws of a recipe's training stream with the published sampler it replaces."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.options import JsonOption, OutOption, RecipeOption, SetOption
from jobs.recipes import load_recipe
from pipelines.base.progress import say
from pipelines.config.recipe import Recipe

if TYPE_CHECKING:
    from pipelines.data.marginals import Marginals

FoldOption = Annotated[int, typer.Option("--fold", "-f", help="Fold whose base classes are trained.")]
EpochsOption = Annotated[int, typer.Option("--epochs", "-n", min=8, help="Number of epochs to draw.")]


def register(app: typer.Typer) -> None:
    """Add the sub-command to the group `data`."""
    group = next(g.typer_instance for g in app.registered_groups if g.name == "data")
    assert group is not None

    @group.command()
    def sampling(
        recipe: RecipeOption = "demo", fold: FoldOption = 0, epochs: EpochsOption = 40,
        set_: SetOption = None, out: OutOption = None, as_json: JsonOption = False,
    ) -> None:
        """Draw a fold's training episodes and compare their frequencies with those of the published sampler.

        Reads the shards' tables only; no photo is decoded.
        """
        loaded = load_recipe(recipe, set_, out=out)

        from pipelines.base.workspace import Workspace

        facts, page = measure_sampling(loaded, fold, epochs)
        store, name = Workspace(loaded.out).store, f"sampling/{loaded.data.name}-fold{fold}.html"
        store.write_bytes(name, page.encode())
        facts["page"] = store.path(name)
        if as_json:
            print(json.dumps(facts))
        for line in (*facts["statement"], facts["page"]):
            say(line)


def measure_sampling(recipe: Recipe, fold: int, epochs: int) -> tuple[dict[str, Any], str]:
    """Draw `epochs` epochs of a fold; returns the figures as a JSON object, and the HTML page.

    Raises `FssError` for missing shards and an unknown fold.
    """
    from pipelines.base.workspace import Workspace
    from pipelines.data.folds import FoldData
    from pipelines.data.marginals import SAMPLERS, describe_marginals, epochs_of, measure_marginals, pools_of
    from pipelines.data.plan import StreamPlan
    from pipelines.data.stream import usable_blocks
    from pipelines.report.sampling import sampling_page

    data, train = FoldData.open(Workspace(recipe.out).shards(recipe.data.name), fold), recipe.train
    avoid = set(data.novel_ids) if train.novel_images == "drop" else set()
    blocks = usable_blocks(data.shards, [c.class_id for c in data.base], avoid)
    plan = StreamPlan(blocks, shots=train.shots, targets=train.targets, seed=0, pool_bytes=train.pool_bytes,
                      sampler=train.sampler)
    published = SAMPLERS[plan.sampler]
    found = measure_marginals(epochs_of(plan, epochs), pools_of(plan), plan.weights())
    lines = describe_marginals(found, published)
    title = f"Training draws of {recipe.data.name}, fold {fold}, {train.shots} shots"
    page = sampling_page(found, {c.class_id: c.name for c in data.base}, title, lines)
    return {"dataset": recipe.data.name, "fold": fold, "shots": train.shots, **_facts(found), "statement": lines}, page


def _facts(found: Marginals) -> dict[str, Any]:
    tables = {"class": found.by_class, "query": found.by_query, "pair": found.by_pair}
    return {"episodes": found.episodes, "same_block": found.same_block,
            "same_block_independent": found.same_block_independent,
            "epochs": found.epochs,
            "tests": {n: {"chi_square": t.statistic, "cells": len(t.drawn), "p": t.pvalue, "spread": t.spread}
                      for n, t in tables.items()}}
