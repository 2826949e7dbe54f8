"""What a search may try: its settings are checked before anything runs, and written into recipes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from fss_models import registry
from fss_models.errors import FssError
from pipelines.config.hyperband import brackets_of
from pipelines.config.method import method_labels
from pipelines.config.recipe import Recipe
from pipelines.config.sweep import RangeConfig, SearchConfig
from pipelines.selection.study import SearchStudy
from pipelines.selection.trials import Trial
from pipelines.sweeps.plan import check_methods

OF_METHOD = re.compile(r"methods\.(\d+)\.config\.")
FIXED = ("train.steps", "train.epochs", "train.stop", "train.selection", "train.select", "train.workers",
         "train.min_workers", "train.features", "train.shots", "train.prompts")
BETWEEN = (5 ** 0.5 - 1) / 2  # where between its ends a range is tried: irrational, so that whole ends give a fraction


@dataclass
class SearchedMethod:
    """A method of a search: the recipe with this method alone, what is tried, and the trials so far."""

    label: str
    whole: Recipe  # with all methods, by whose keys settings are named
    number: int  # of the method in `whole`
    study: SearchStudy
    trials: list[Trial] = field(default_factory=list)

    @property
    def recipe(self) -> Recipe:
        """The recipe with this method alone."""
        return self._alone(self.whole)

    def ask(self, count: int) -> list[Trial]:
        """The next `count` trials."""
        new = [Trial(number=len(self.trials) + i, values=values) for i, values in enumerate(self.study.ask(count))]
        self.trials += new
        return new

    def change_settings(self, values: Mapping[str, Any]) -> Recipe:
        """The recipe with this method alone and the settings of a trial."""
        return self._alone(change_settings(self.whole, values))

    def best_recipe(self, values: Mapping[str, Any]) -> Recipe:
        """The recipe with the settings of a trial and without the search, to be run by other commands."""
        return self.change_settings(values).model_copy(update={"search": SearchConfig()})

    def _alone(self, recipe: Recipe) -> Recipe:
        return recipe.model_copy(update={"methods": [recipe.methods[self.number]]})


def check_search(recipe: Recipe) -> list[SearchedMethod]:
    """The methods of a search: those of the recipe that train.

    The recipe has no matrix. Raises `FssError` for a space that is empty, has settings that cannot be searched or
    leaves a method nothing to try, for values that do not fit, and for a recipe without a method that trains.
    """
    space = recipe.search.space
    if not space:
        raise FssError("search.space is empty", where=recipe.name,
                       hint="give one, such as --set 'search.space={train.lr: {log: [0.0001, 0.01]}}'")
    able = [i for i, m in enumerate(recipe.methods) if registry.method_class(m.name).trains]
    if not able:
        raise FssError("a search needs a method that trains", where=recipe.name, hint="add one to methods")
    for key, values in space.items():
        _check_key(recipe, key, able)
        for value in values.choice or values.uniform or values.log or ():
            change_settings(recipe, {key: value})
        if ends := values.uniform or values.log:
            _check_between(recipe, key, *ends)
    labels, first = method_labels(recipe.methods), brackets_of(recipe.search)[0].sizes[0]
    found = [SearchedMethod(labels[i], recipe, i, SearchStudy(recipe.search, _space_of(recipe, i), first))
             for i in able]
    for method in found:
        check_methods(method.recipe)
    return found


def _check_key(recipe: Recipe, key: str, able: list[int]) -> None:
    own = OF_METHOD.match(key)
    if key.startswith(FIXED) or not (own or key.startswith("train.")):
        raise FssError(f"search.space: {key} cannot be searched", where=recipe.name,
                       hint="use settings below train and methods.N.config that do not change what is compared")
    if own and int(own[1]) not in able:
        raise FssError(f"search.space: {key} is not a setting of a method that trains", where=recipe.name,
                       hint=f"methods that train: {', '.join(f'methods.{i}' for i in able)}")


def _check_between(recipe: Recipe, key: str, low: float, high: float) -> None:
    """Raise `FssError` if the setting does not take a fraction between two numbers that it takes."""
    try:
        change_settings(recipe, {key: low + BETWEEN * (high - low)})
    except FssError as error:
        raise FssError(error.what, where=recipe.name, hint=f"give its values: {key}: {{choice: [...]}}") from error


def _space_of(recipe: Recipe, number: int) -> dict[str, RangeConfig]:
    """The settings that are tried for a method: those of training, and its own."""
    found = {k: v for k, v in recipe.search.space.items() if not (own := OF_METHOD.match(k)) or int(own[1]) == number}
    if not found:
        raise FssError(f"search.space has no setting of methods.{number} ({recipe.methods[number].name})",
                       where=recipe.name, hint="add one, or leave the method out")
    return found


def change_settings(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """The recipe with some settings changed. Raises `FssError` for an unknown setting or a value that does not fit."""
    raw = recipe.model_dump()
    for key, value in values.items():
        node: Any = raw
        *place, last = key.split(".")
        for part in place:
            node = node[int(part)] if isinstance(node, list) else node[part]
        node[last] = value
    try:
        made = Recipe.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"])
        raise FssError(f"search.space: {where}: {first['msg'].removeprefix('Value error, ')}",
                       where=recipe.name) from error
    for method in made.methods:
        registry.make_config(method.name, method.config)
    return made
