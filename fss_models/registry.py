"""The registry of methods. A method registers itself by decorating its class; tests enumerate the registry."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable
from dataclasses import asdict, fields, is_dataclass
from typing import Any, TypeVar

import torch

from fss_models.errors import FssError
from fss_models.segmenter import Segmenter
from fss_models.settings import check_settings

T = TypeVar("T", bound=type[Segmenter])
_METHODS: dict[str, tuple[type[Segmenter], type]] = {}


def register_method(name: str, *, config: type) -> Callable[[T], T]:
    """Register a `Segmenter` under `name` with the dataclass that configures it."""

    def add(cls: T) -> T:
        if name in _METHODS and _METHODS[name][0].__qualname__ != cls.__qualname__:
            raise ValueError(f"method {name!r} is registered twice")
        if not is_dataclass(config):
            raise TypeError(f"the config of {name!r} must be a dataclass")
        cls.method = name
        _METHODS[name] = (cls, config)
        return cls

    return add


def list_methods() -> list[str]:
    """Names of all methods, sorted.

    Examples:
        >>> "sansa" in list_methods()
        True
    """
    _load()
    return sorted(_METHODS)


def method_config(name: str) -> type:
    """The configuration dataclass of a method. Raises `FssError` for an unknown name."""
    return _find(name)[1]


def method_class(name: str) -> type[Segmenter]:
    """The class of a method. Raises `FssError` for an unknown name."""
    return _find(name)[0]


def build(
    method: str, preset: str, config: dict[str, Any] | None = None, *, weights: str | None = None, seed: int = 0
) -> Segmenter:
    """Build a method at a preset, on the CPU, ready to train or to predict.

    `config` holds fields of the method's dataclass; `weights` is a local SAM 2 checkpoint file where the preset
    wants one. Values that come from no file are drawn from `seed`, which the bundle keeps: it holds only what was
    trained, and has to find the same frozen random parts again. Raises `FssError` for an unknown method, preset or
    config key.

    Examples:
        >>> model = build("prior", "debug")
        >>> model.side, model.trains
        (64, False)
        >>> build("prior", "enormous")
        Traceback (most recent call last):
        fss_models.errors.FssError: unknown preset 'enormous' ...
    """
    cls, settings = method_class(method), make_config(method, config)
    check_preset(method, preset)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cls(preset=preset, config=settings, weights=weights)  # type: ignore[call-arg]
    model.seed = seed
    model.set_trainable()
    return model


def check_preset(method: str, preset: str) -> None:
    """Raises `FssError` if the method cannot be built at `preset`, naming those it can."""
    known = method_class(method).presets
    if preset not in known:
        raise FssError(f"unknown preset {preset!r} of method {method!r}", hint=f"known: {', '.join(known)}")


def make_config(method: str, config: dict[str, Any] | None = None) -> Any:
    """The configuration of a method from its fields. Raises `FssError` for an unknown method, key or choice."""
    config_cls = method_config(method)
    known = [f.name for f in fields(config_cls)]
    for key in config or {}:
        if key not in known:
            raise FssError(f"unknown setting {key!r} of method {method!r}", hint=f"known: {', '.join(known) or 'none'}")
    made = config_cls(**(config or {}))
    check_settings(made)
    return made


def config_dict(model: Segmenter) -> dict[str, Any]:
    """The full configuration of a built method, defaults included."""
    return asdict(model.config)


def _find(name: str) -> tuple[type[Segmenter], type]:
    _load()
    if name not in _METHODS:
        raise FssError(f"unknown method {name!r}", hint=f"known: {', '.join(sorted(_METHODS))}")
    return _METHODS[name]


def _load() -> None:
    import fss_models.methods as package

    for module in pkgutil.iter_modules(package.__path__):
        name = f"{package.__name__}.{module.name}.model"
        if importlib.util.find_spec(name):  # a package without a model is no method
            importlib.import_module(name)
