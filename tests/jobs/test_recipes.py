"""Recipes: all shipped ones load, and a mistake in a recipe is reported in one line with the nearest known key."""

from __future__ import annotations

from pathlib import Path

import pytest

from fss_models.errors import FssError
from fss_models.registry import list_methods
from jobs.recipes import list_recipes, load_pretraining, load_recipe
from pipelines.config.method import MethodConfig
from pipelines.config.run import RunSpec

NEEDS_ROOT = {"demo_coco": ["data.source.root=photos"]}


@pytest.mark.parametrize("name", list_recipes())
def test_shipped_recipes_load_and_name_known_methods(name: str) -> None:
    recipe = load_recipe(name, NEEDS_ROOT.get(name))
    assert {m.name for m in recipe.methods} <= set(list_methods())


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_survives_printing(name: str, tmp_path: Path) -> None:
    """The full recipe can be printed as YAML, loaded again, and is the same."""
    import yaml

    recipe = load_recipe(name, NEEDS_ROOT.get(name))
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(recipe.model_dump()))
    assert load_recipe(str(tmp_path / "again.yaml")) == recipe


@pytest.mark.parametrize(("override", "line"), [
    ("train.stesp=5", "did you mean 'train.steps'"),
    ("trian.steps=5", "did you mean 'train'"),
    ("methods.0.persets=nano", "did you mean 'methods.0.preset'"),
    ("data.source.fromat=coco", "did you mean 'data.source.format'"),
    ("search.space={train.lr: {lgo: [0.1, 1]}}", "did you mean 'search.space.train.lr.log'"),
    ("search.space.train.lr.log=[0.1, 1]", "unknown key 'search.space.train.lr'"),
    ("train.steps=many", "train.steps: "),
    ("train.steps=0", "train.steps: "),
    ("data.source.format=tfds", "data.source.format: "),
    ("data.source.format=coco", "needs a root"),
    ("methods.9.preset=nano", "is no item of the list, which has 4 (0 to 3)"),
    ("train.steps", "has no '='"),
    ("train.steps.deep=1", "not a section"),
    ("train: [", "has no '='"),
])
def test_mistakes_are_one_clear_line(override: str, line: str) -> None:
    with pytest.raises(FssError) as error:
        load_recipe("demo", [override])
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_the_precision_of_older_recipes_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    """It has one spelling now, that of inference; runs of older versions keep their names."""
    recipe = load_recipe("demo", ["train.precision=bf16", "base_learner.precision=fp32"])
    assert (recipe.train.precision, recipe.base_learner.precision) == ("bfloat16", "float32")
    assert capsys.readouterr().err.splitlines() == ["train.precision: bf16 is spelled bfloat16 now",
                                                    "base_learner.precision: fp32 is spelled float32 now"]
    load_recipe("demo", ["train.precision=bfloat16"])
    assert load_pretraining("nano_pretrain").precision == "bfloat16"
    assert not capsys.readouterr().err
    run = RunSpec(dataset="d", shards="s", data_hash="h", fold=0, method=MethodConfig(name="sansa"))
    assert run.name == "d-sansa-nano-f0-k1-s0-676480a7"
    assert run.model_copy(update={"train": recipe.train}).digest == "919d45b8"


def test_overrides_change_what_they_name() -> None:
    recipe = load_recipe("demo", ["train.steps=7", "methods.1.preset=debug", "sweep.folds=[0, 2]"], out="here")
    assert recipe.train.steps == 7
    assert recipe.methods[1].preset == "debug"
    assert recipe.sweep.folds == [0, 2]
    assert recipe.out == "here"
    assert load_recipe("demo").train.steps != 7


def test_recipes_that_extend_each_other_in_a_circle_are_refused(tmp_path: Path) -> None:
    one, other = tmp_path / "one.yaml", tmp_path / "other.yaml"
    for text in (str(one), str(other)):
        one.write_text(f"extends: {text}")
        other.write_text(f"extends: {one}")
        with pytest.raises(FssError, match=r"one\.yaml: extends itself: .* -> "):
            load_recipe(str(one))
    other.write_text("extends: demo\nname: mine")
    assert load_recipe(str(one)).name == "mine"


def test_files_and_names(tmp_path: Path) -> None:
    for text, line in (("a: [", "is not valid YAML"), ("- a", "a mapping"), ("tran: {}", "did you mean 'train'")):
        (tmp_path / "r.yaml").write_text(text)
        with pytest.raises(FssError, match=line) as error:
            load_recipe(str(tmp_path / "r.yaml"))
        assert str(tmp_path / "r.yaml") in str(error.value)
    (tmp_path / "r.yaml").write_bytes("name: caf\u00e9".encode("latin-1"))
    with pytest.raises(FssError, match=r"r\.yaml: is not UTF-8 text"):
        load_recipe(str(tmp_path / "r.yaml"))
    with pytest.raises(FssError, match="no such recipe file"):
        load_recipe(str(tmp_path / "none.yaml"))
    with pytest.raises(FssError, match=r"no recipe 'demmo' \(known: .*demo"):
        load_recipe("demmo")
