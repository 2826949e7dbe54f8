"""The stage before a sweep's runs: base learners, each trained once, shared by methods, resumed after a kill."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipelines.base.storage import Store
from pipelines.base.workspace import Workspace
from pipelines.bundles.bundle import load_bundle
from pipelines.config.base_learner import BaseLearnerConfig
from pipelines.config.method import MethodConfig
from pipelines.config.recipe import Recipe
from pipelines.config.train import SelectConfig
from pipelines.sweeps.base_learners import base_learners_of, ensure_base_learners
from pipelines.sweeps.plan import plan_sweep
from pipelines.sweeps.sweep import run_one

METHODS = [MethodConfig(name="bam", preset="debug"), MethodConfig(name="hdmnet", preset="debug")]


def recipe_of(recipe: Recipe, **train: object) -> Recipe:
    learner = BaseLearnerConfig(steps=4, batch=2, checkpoint_every=2, log_every=2)
    return recipe.model_copy(update={
        "methods": METHODS, "base_learner": learner, "train": recipe.train.model_copy(update=train),
        "eval": recipe.eval.model_copy(update={"episodes": 4}),
        "sweep": recipe.sweep.model_copy(update={"folds": [0]})})


def test_one_base_learner_serves_all_methods_and_is_not_trained_again(
    debug_recipe: Recipe, ray_cluster: object
) -> None:
    """Would catch: a run that starts before its base learner or with another one, a bundle that lacks it, a second one
    for another method."""
    recipe = recipe_of(debug_recipe)
    result = run_one(recipe, method="bam", fold=0, seed=0)
    assert (result.error, result.untrained) == ("", False)
    (learner,) = base_learners_of([result.spec])
    folder = Path(Workspace(recipe.out).run(learner.name))
    tensors, about = load_file(folder / "base.safetensors"), Store(str(folder)).read_json("base.json")
    model, info = load_bundle(result.bundle)
    state = model.trainable_state()
    assert torch.equal(state["base_head.cls.4.weight"], tensors["cls.4.weight"])
    assert torch.equal(state["backbone.layer4.0.conv1.weight"], tensors["layer4.0.conv1.weight"])
    assert set(about["photos"]) <= set(info.trained_on)
    assert info.provenance["base_learner"] == learner.name

    specs = plan_sweep(recipe)
    assert [s.method.name for s in specs] == ["bam", "hdmnet"]
    assert base_learners_of(specs) == [learner]
    ensure_base_learners(recipe, specs, ray_cluster)
    assert Store(str(folder)).read_json("base.json") == about
    assert [p.name for p in folder.parent.glob("*-base-*")] == [learner.name]


@pytest.mark.slow
def test_a_base_learner_without_its_files_goes_on(debug_recipe: Recipe, ray_cluster: object) -> None:
    """Killed after its last checkpoint, before its files were written."""
    recipe = recipe_of(debug_recipe)
    specs = plan_sweep(recipe)
    ensure_base_learners(recipe, specs, ray_cluster)
    (learner,) = base_learners_of(specs)
    folder = Path(Workspace(recipe.out).run(learner.name))
    about = Store(str(folder)).read_json("base.json")
    for lost in ("base.json", "base.safetensors"):
        (folder / lost).unlink()
    ensure_base_learners(recipe, specs, ray_cluster)
    assert Store(str(folder)).read_json("base.json") == about, "times differ: it began anew instead of going on"


def test_held_out_classes_are_hidden_from_a_base_learner_too(debug_recipe: Recipe, ray_cluster: object) -> None:
    """The training that chooses the number of steps has a base learner of its own, without the held-out classes."""
    specs = plan_sweep(recipe_of(debug_recipe, selection="base-holdout", select=SelectConfig(points=2, episodes=6)))
    whole, held = base_learners_of(specs)
    assert not whole.holdout
    assert len(held.holdout) == 3
    assert {s.learner.name for s in specs if s.learner} == {whole.name}
