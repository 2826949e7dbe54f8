"""`sweep.matrix`: which cells a recipe is, and that a mistake in it is one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from fss_models.errors import FssError
from pipelines.base.storage import Store
from pipelines.config.data import DataConfig
from pipelines.config.evaluate import EvalConfig
from pipelines.config.method import MethodConfig
from pipelines.config.recipe import Recipe
from pipelines.config.run import RunSpec
from pipelines.config.sweep import SweepConfig
from pipelines.config.train import TrainConfig
from pipelines.sweeps.matrix import expand_matrix, only_cell, sweep_specs
from pipelines.sweeps.sweep import RECIPE, read_sweep_recipe


def recipe(**matrix: list[object]) -> Recipe:
    return Recipe(name="m", data=DataConfig(name="shapes"), train=TrainConfig(steps=9, lr=0.1), sweep=SweepConfig(
        seeds=[0, 1], matrix=matrix), methods=[MethodConfig(name="prior"), MethodConfig(name="sansa")])


def specs(one: Recipe) -> list[RunSpec]:
    return sweep_specs(one, shards="s", data_hash=one.data.name, trains=dict.fromkeys((0, 1), one.train))


def test_without_a_matrix_there_is_one_cell() -> None:
    (cell,) = expand_matrix(recipe())
    assert (cell.label, cell.suffix) == ("", "")
    assert cell.recipe == recipe() == only_cell(recipe())


def test_a_matrix_of_one_cell_is_a_plain_sweep() -> None:
    """Otherwise its table would have a name that `fss promote` and `fss report` do not look for."""
    (cell,) = expand_matrix(recipe(**{"eval.shots": [5]}))
    assert (cell.label, cell.suffix) == ("", "")
    assert cell.recipe.eval.shots == 5
    assert only_cell(recipe(**{"eval.shots": [5]})) == cell.recipe


def test_every_combination_is_a_cell_and_methods_multiply_within() -> None:
    """method x preset x dataset x fold x shot x seed x a config key: no run twice, none left out."""
    one = recipe(**{"preset": ["debug", "nano"], "shots": [1, 5], "train.lr": [0.1, 0.2, 0.3],
                    "dataset": [{"name": "shapes"}, {"name": "more", "source": {"format": "shapes", "seed": 4}}],
                    "methods.1.config.factor": [0.3, 0.8]})
    found = expand_matrix(one)
    assert len(found) == 2 * 3 * 2
    assert len({c.label for c in found}) == len({c.suffix for c in found}) == 12
    assert found[0].label == "dataset=shapes shots=1 train.lr=0.1"
    assert all(c.recipe.train.shots == c.recipe.eval.shots for c in found)
    assert all(c.recipe.train.steps == 9 for c in found), "what the matrix does not name stays"
    assert {c.recipe.data.source.seed for c in found if c.recipe.data.name == "more"} == {4}
    methods = [(m.name, m.preset, m.config.get("factor")) for m in found[0].recipe.methods]
    assert methods == [("prior", "debug", None), ("prior", "nano", None), ("sansa", "debug", 0.3),
                       ("sansa", "debug", 0.8), ("sansa", "nano", 0.3), ("sansa", "nano", 0.8)]
    names = [s.name for c in found for s in specs(c.recipe) if s.trains]
    assert len(names) == len(set(names)) == 12 * 4 * 2 * 2
    assert all(not c.recipe.sweep.matrix for c in found)


def test_a_list_of_episodes_keeps_its_own_shots() -> None:
    one = recipe(shots=[1, 5]).model_copy(update={"eval": EvalConfig(list="lists/fold{fold}.parquet")})
    assert [c.recipe.eval.shots for c in expand_matrix(one)] == [1, 1]


PASCAL = {"name": "pascal", "source": {"format": "pascal5i", "root": "/p"}}
COCO = {"name": "coco", "source": {"format": "coco20i", "root": "/c"}}
OWN = {"name": "own", "source": {"format": "voc", "root": "/o"}}


@pytest.mark.parametrize("base", [{}, PASCAL, {"split": {"seed": 3}, "min_area": 0.2, "max_side": 99}])
def test_a_dataset_has_the_rules_that_it_has_alone(base: dict[str, object], tmp_path: Path) -> None:
    """And `fss sweep resume` finds the same cells in the recipe that a sweep writes, with every default set."""
    one = Recipe.model_validate({"data": base, "sweep": {"matrix": {"dataset": [PASCAL, COCO]}}, "out": str(tmp_path)})
    cells = expand_matrix(one)
    assert [c.recipe.data for c in cells] == [DataConfig.model_validate(d) for d in (PASCAL, COCO)]
    Store(str(tmp_path)).write_json(RECIPE, one.model_dump(mode="json"))
    assert expand_matrix(read_sweep_recipe(str(tmp_path))) == cells


def test_only_rules_to_or_from_a_benchmark_are_not_inherited() -> None:
    matrix = {"sweep": {"matrix": {"dataset": [OWN, {"name": "same"}]}}}
    own, same = (c.recipe.data for c in expand_matrix(Recipe.model_validate({"data": PASCAL | {"seed": 5}} | matrix)))
    assert own == DataConfig.model_validate(OWN | {"seed": 5})
    assert same == DataConfig.model_validate(PASCAL | {"name": "same", "seed": 5})
    shared = {"min_area": 0.2, "split": {"seed": 3}}
    assert expand_matrix(Recipe.model_validate({"data": shared} | matrix))[0].recipe.data == DataConfig.model_validate(
        OWN | shared)


@pytest.mark.parametrize(("matrix", "line"), [
    ({"train.stesp": [1]}, "train.stesp"),
    ({"train.lr": ["fast"]}, "train.lr"),
    ({"train.lr": []}, "train.lr has no values"),
    ({"methods.7.preset": ["nano"]}, "not a setting of one of the 2 methods"),
    ({"methods": [[]]}, "methods"),
    ({"sweep.folds": [[0]]}, "not of a run"),
    ({"train.select": [{"points": 2}]}, "ignores train.select.points"),
])
def test_mistakes_are_one_clear_line(matrix: dict[str, list[object]], line: str) -> None:
    if matrix == {"methods": [[]]}:
        assert expand_matrix(recipe(**matrix))[0].recipe.methods == []
        return
    with pytest.raises(FssError, match=line) as error:
        expand_matrix(recipe(**matrix))
    assert "\n" not in str(error.value)


def test_commands_that_need_one_table_say_so(tmp_path: Path) -> None:
    from pipelines.selection.promote import promote
    from pipelines.sweeps.plan import collect_results
    from pipelines.sweeps.sweep import run_one, run_sweep

    one = recipe(shots=[1, 5]).model_copy(update={"out": str(tmp_path / "out")})
    for act in (promote, collect_results, run_sweep, lambda r: run_one(r, method="sansa", fold=0, seed=0)):
        with pytest.raises(FssError, match="has 2 comparisons"):
            act(one)
    assert not list(tmp_path.iterdir())
