"""Reads recipes: YAML, `--set a.b=c` overrides, and errors that name the nearest known key.

A recipe with `extends: NAME` contains only the differences from the recipe NAME.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from rapidfuzz import process

from fss_models.errors import FssError
from pipelines.base.progress import say
from pipelines.config.recipe import Recipe
from pipelines.config.section import LONG
from pipelines.pretraining.config import PretrainConfig

PRETRAINING = "pretrain"
T = TypeVar("T", bound=BaseModel)


def load_recipe(name: str, overrides: list[str] | None = None, **direct: Any) -> Recipe:
    """Load a recipe by the path of its file, or by the name of one that ships.

    `overrides`: `a.b=value`, the value being YAML. `direct`: top-level values that replace all others (None is
    skipped). Raises `FssError` for a missing file, an unknown key (naming the nearest one) and a value of the wrong
    kind.
    """
    return _load(Recipe, "", name, overrides, direct)


def load_pretraining(name: str, overrides: list[str] | None = None, **direct: Any) -> PretrainConfig:
    """Load a recipe of `fss pretrain`; parameters and errors as for `load_recipe`."""
    return _load(PretrainConfig, PRETRAINING, name, overrides, direct)


def list_recipes(folder: str = "") -> list[str]:
    """Names of the recipes in a folder of those that ship with the package; "": recipes of sweeps and runs."""
    return sorted(p.name.removesuffix(".yaml") for p in files("jobs").joinpath("recipes", folder).iterdir()
                  if p.name.endswith(".yaml"))


def _load(model: type[T], folder: str, name: str, overrides: list[str] | None, direct: dict[str, Any]) -> T:
    raw, where = _read(name, folder)
    assign_all(raw, overrides or [])
    raw.update({k: v for k, v in direct.items() if v is not None})
    _say_older_spellings(raw)
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise FssError(_first_mistake(error, model), where=where) from error


def _say_older_spellings(raw: dict[str, Any]) -> None:
    """A line about each precision of a training that is spelled as in older versions."""
    for section in ("", "train.", "base_learner."):
        values = raw.get(section.removesuffix(".")) if section else raw
        given = values.get("precision") if isinstance(values, dict) else None
        if isinstance(given, str) and given in LONG:
            say(f"{section}precision: {given} is spelled {LONG[given]} now")


def assign_all(raw: dict[str, Any], given: list[str], option: str = "--set") -> None:
    """Write the values of `a.b=value`, the value being YAML, into `raw`. Raises `FssError` for a malformed one."""
    for item in given:
        key, eq, value = item.partition("=")
        if not eq:
            raise FssError(f"{option} {item!r} has no '='", hint=f"write it as in {option} train.steps=100")
        _assign(raw, key.strip().split("."), _yaml(value, f"{option} {key}"))


def _read(name: str, folder: str, over: tuple[str, ...] = ()) -> tuple[dict[str, Any], str]:
    """A recipe merged over those that it extends, and its name in errors. `over`: names of recipes that extend it."""
    if name in over:
        raise FssError(f"extends itself: {' -> '.join([*over, name])}", where=name)
    raw, where = read_yaml(name, folder, "recipe")
    if not isinstance(raw, dict):
        raise FssError("is not a mapping of sections, as a recipe has to be", where=where)
    if base := raw.pop("extends", ""):
        return _merged(_read(str(base), folder, (*over, name))[0], raw), where
    return raw, where


def read_yaml(name: str, folder: str, what: str) -> tuple[Any, str]:
    """The content of a YAML file by its path, or by its name in a folder of those that ship; and its name in errors.

    `what`: what errors call such a file.
    """
    path, shipped = Path(name), list_recipes(folder)
    if not path.suffix:
        if name not in shipped:
            raise FssError(f"there is no {what} {name!r}", hint=f"known: {', '.join(shipped)}; or give a .yaml file")
        text, where = files("jobs").joinpath("recipes", folder, f"{name}.yaml").read_text(), f"{what} {name}"
    else:
        if not path.is_file():
            raise FssError(f"there is no such {what} file", where=name, hint=f"shipped {what}s: {', '.join(shipped)}")
        text, where = _text(path), name
    return _yaml(text, where), where


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FssError("is not UTF-8 text", where=str(path), hint="save it as UTF-8") from error


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over` on top: sections are merged, lists and values are replaced."""
    found = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(found.get(key), dict)
        found[key] = _merged(found[key], value) if both else value
    return found


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise FssError(f"is not valid YAML: {error}", where=where) from error


def parse_settings(items: list[str]) -> dict[str, Any]:
    """Settings of a method from `NAME=VALUE`. Raises `FssError` for an item without `=` or a value that is no YAML."""
    pairs = [item.partition("=") for item in items]
    for key, eq, _ in pairs:
        if not eq:
            raise FssError(f"--config {key!r} has no '='", hint="write it as in --config side=641")
    return {key.strip(): _yaml(value, f"--config {key}") for key, _, value in pairs}


def _assign(raw: dict[str, Any], keys: list[str], value: Any) -> None:
    """Set a nested value; list items are addressed by number (`methods.0.preset=debug`)."""
    node: Any = raw
    for i, key in enumerate(keys):
        last = i == len(keys) - 1
        if isinstance(node, list):
            if not key.isdigit() or int(key) >= len(node):
                raise FssError(f"--set {'.'.join(keys)}: {key!r} is no item of the list, which has {len(node)} (0 to "
                               f"{len(node) - 1})")
            if last:
                node[int(key)] = value
            node = node[int(key)]
        elif isinstance(node, dict):
            if last:
                node[key] = value
            else:
                node = node.setdefault(key, {})
        else:
            raise FssError(f"--set {'.'.join(keys)}: {'.'.join(keys[:i])} is a value, not a section")


def _first_mistake(error: ValidationError, model: type[BaseModel]) -> str:
    """The first error as one readable line."""
    first = error.errors()[0]
    place = [str(p) for p in first["loc"]]
    dotted = ".".join(place)
    if first["type"] == "extra_forbidden":
        near = process.extractOne(place[-1], _keys_at(model, place[:-1]))
        return f"unknown key {dotted!r}" + (f", did you mean {'.'.join([*place[:-1], near[0]])!r}?" if near else "")
    given = "" if isinstance(first["input"], dict) else f", not {first['input']!r}"
    return f"{dotted or 'recipe'}: {first['msg'].removeprefix('Value error, ').lower()}{given}"


def _keys_at(model: type[BaseModel], place: list[str]) -> list[str]:
    """The keys of a section. In a mapping with free keys (`search.space`) every key leads to a section of one kind."""
    kind: Any = model
    for key in place:
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
        elif not key.isdigit():
            kind = kind.model_fields[key].annotation
        while get_origin(kind) not in (None, dict):
            kind = get_args(kind)[0]
    return list(kind.model_fields)
