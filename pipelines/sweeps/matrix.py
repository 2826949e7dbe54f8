"""One recipe, many comparisons: `sweep.matrix` lists settings and the values that each of them takes.

Values of `preset` and of `methods.N.*` give further methods of the same table. Each combination of the other values is
a cell: a recipe of its own with a table of its own. `shots` is short for `train.shots` and `eval.shots`, `dataset` for
`data`. A `dataset` with a source of its own has rules of its own: where its format or that of `data` is a benchmark's,
the folds, filter and split of `data` do not apply to it (`pipelines.config.data.RULES`). Other keys of `data` do.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from fss_models import registry
from fss_models.errors import FssError
from pipelines.config.base_learner import BaseLearnerConfig
from pipelines.config.data import BENCHMARKS, RULES
from pipelines.config.method import MethodConfig
from pipelines.config.recipe import Recipe
from pipelines.config.run import MixtureShare, RunSpec, shipped_sha
from pipelines.config.train import TrainConfig

SHORT = {"shots": ("train.shots", "eval.shots"), "dataset": ("data",)}


@dataclass(frozen=True)
class MatrixCell:
    """A recipe without a matrix, and the values that distinguish it (`label`, empty if it is the only cell)."""

    label: str
    recipe: Recipe

    @property
    def suffix(self) -> str:
        """Suffix of the cell's file names, such as `-shots=5`; empty if it is the only cell."""
        return "-" + re.sub(r"[^\w.=]+", "-", self.label) if self.label else ""


def expand_matrix(recipe: Recipe) -> list[MatrixCell]:
    """All cells of a recipe's matrix, ordered by the names of the keys and the order of their values.

    Raises `FssError` for an unknown key, a value that does not fit its key, and an empty list of values.
    """
    matrix = recipe.sweep.matrix
    if not matrix:
        return [MatrixCell("", recipe)]
    for key, values in matrix.items():
        if not values:
            raise FssError(f"sweep.matrix: {key} has no values", where=recipe.name, hint="give a list of values")
        if key.startswith("sweep."):
            raise FssError(f"sweep.matrix: {key} is a setting of the sweep, not of a run", where=recipe.name,
                           hint="set it outside the matrix")
    raw = recipe.model_dump(exclude_unset=True)
    raw.get("sweep", {}).pop("matrix", None)
    raw["methods"] = _methods(raw.get("methods") or [m.model_dump() for m in recipe.methods], matrix)
    own = {k: v for k, v in sorted(matrix.items()) if not _of_methods(k)}  # in any order of the recipe
    found = [_cell(raw, dict(zip(own, chosen, strict=True)), recipe) for chosen in itertools.product(*own.values())]
    return found if len(found) > 1 else [MatrixCell("", found[0].recipe)]


def only_cell(recipe: Recipe) -> Recipe:
    """The recipe's single cell. Raises `FssError` where it has several."""
    found = expand_matrix(recipe)
    if len(found) > 1:
        raise FssError(f"this recipe has {len(found)} comparisons ({found[0].label}, ...), and this command takes one",
                       where=recipe.name, hint="use --set sweep.matrix={} and --set each key of the matrix")
    return found[0].recipe


def _of_methods(key: str) -> bool:
    return key == "preset" or key.startswith("methods.")


def _methods(methods: Sequence[dict[str, Any]], matrix: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every method with every combination of the matrix values that concern it."""
    found = []
    for number, method in enumerate(methods):
        own = {(k if k == "preset" else k.split(".", 2)[2]): v for k, v in matrix.items()
               if k == "preset" or k.startswith(f"methods.{number}.")}
        found += [_assigned(method, dict(zip(own, chosen, strict=True))) for chosen in itertools.product(*own.values())]
    for key in matrix:
        if key.startswith("methods.") and not (key.split(".")[1].isdigit() and int(key.split(".")[1]) < len(methods)
                                               and key.count(".") > 1):
            raise FssError(f"sweep.matrix: {key} is not a setting of one of the {len(methods)} methods")
    return found


def _cell(raw: dict[str, Any], chosen: Mapping[str, Any], recipe: Recipe) -> MatrixCell:
    full = {key: value for name, value in chosen.items() for key in SHORT.get(name, (name,))}
    if "shots" in chosen and raw.get("eval", {}).get("list"):
        full.pop("eval.shots")  # a list file has its own number of shots
    try:
        made = Recipe.model_validate(_assigned(_without_rules(raw, full), full))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or ", ".join(chosen)
        raise FssError(f"sweep.matrix: {place}: {first['msg'].removeprefix('Value error, ')}",
                       where=recipe.name) from error
    return MatrixCell(" ".join(_said(chosen)), made)


def _without_rules(raw: Mapping[str, Any], values: Mapping[str, Any]) -> Mapping[str, Any]:
    """`raw` without the rules of its data if `values` give another source and one of the two is a benchmark."""
    own, data = _format(_assigned({}, values).get("data")), raw.get("data", {})
    if not own or BENCHMARKS.keys().isdisjoint((own, _format(data))):
        return raw
    return {**raw, "data": {k: v for k, v in data.items() if k not in RULES}}


def _format(data: Any) -> str:
    """The format that a section `data` gives its source, "" if none."""
    source = data.get("source") if isinstance(data, dict) else None
    return str(source.get("format", "")) if isinstance(source, dict) else ""


def _said(chosen: Mapping[str, Any]) -> Iterator[str]:
    for key, value in chosen.items():
        shown = value.get("name", value) if isinstance(value, dict) else value
        yield f"{key}={shown}"


def _assigned(raw: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `raw` with dotted keys set. A value that is a section is merged into the existing section."""
    made: dict[str, Any] = copy.deepcopy(dict(raw))
    for dotted, value in values.items():
        node, keys = made, dotted.split(".")
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        old = node.get(keys[-1])
        node[keys[-1]] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    return made


def sweep_specs(
    recipe: Recipe, *, shards: str, data_hash: str, trains: dict[int | None, TrainConfig],
    mixture: tuple[MixtureShare, ...] = (),
    base_learner: Callable[[MethodConfig, int | None], BaseLearnerConfig | None] = lambda method, fold: None,
) -> list[RunSpec]:
    """The runs of method x fold x seed. A method without training has one run a fold, for the first seed.

    `trains` maps each fold to its training section, whose steps may depend on the fold's photos; `base_learner` gives
    a method's base learner in a fold.
    """
    specs = []
    for method in recipe.methods:
        seeds = recipe.sweep.seeds if registry.method_class(method.name).trains else recipe.sweep.seeds[:1]
        specs += [RunSpec(dataset=recipe.data.name, shards=shards, data_hash=data_hash, fold=fold, method=method,
                          seed=seed, train=train, mixture=mixture, shipped=shipped_sha(method),
                          base_learner=base_learner(method, fold))
                  for fold, train in trains.items() for seed in seeds]
    return specs
