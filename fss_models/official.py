"""Checkpoints of the methods' official code, read without executing anything in them.

A method plugs in with a module `fss_models.methods.<method>.official` that has

    read(state: dict[str, Tensor], preset: str) -> OfficialCheckpoint
    write(model) -> dict[str, Tensor]

`read` is strict: it names the first key that is missing, unknown or misshapen.
"""

from __future__ import annotations

import importlib
import importlib.util
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from fss_models import registry
from fss_models.errors import FssError
from fss_models.presets import RANDOM
from fss_models.segmenter import Segmenter


@dataclass(frozen=True, kw_only=True)
class OfficialCheckpoint:
    """An official checkpoint under our names.

    state   trained tensors, as `Segmenter.load_trainable_state` takes them
    config  the settings that their shapes imply, for `registry.build`
    also    other uses of the same file: `weights` (the checkpoint the model is built on), or fields of the
            configuration that name weight files
    """

    state: dict[str, Tensor]
    config: dict[str, Any] = field(default_factory=dict)
    also: tuple[str, ...] = ()


def read_tensors(path: str) -> dict[str, Tensor]:
    """Read the tensors of a `.safetensors` or torch file by name; `module.` prefixes and a `model` level are removed.

    A torch file is read by its weights-only reader; besides tensors it may hold an argparse Namespace, as several
    official files do. Raises `FssError` for anything else.
    """
    try:
        state: dict[str, Any] = load_file(path) if path.endswith(".safetensors") else _torch_file(path)
    except Exception as error:  # torch and safetensors raise many kinds for a file that is no checkpoint
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FssError(f"is not a checkpoint: {reason}", where=path) from error
    for level in ("model", "state_dict"):
        state = state.get(level, state)
    tensors = {str(k).removeprefix("module."): v for k, v in state.items() if isinstance(v, Tensor)}
    if not tensors:
        raise FssError("holds no tensors", where=path, hint="give the file with the model's weights")
    return tensors


def load_official(method: str, preset: str, path: str, *, weights: str | None = None,
                  config: Mapping[str, Any] | None = None) -> Segmenter:
    """Build a model that holds an official checkpoint; `weights` is the SAM 2 (or SAM) file under it, where needed;
    `config`: settings that the file does not imply.

    Raises `FssError` for a method without official checkpoints, or a file that does not fit, naming the first key.
    """
    found = read_official(method, preset, read_tensors(path), path)
    try:
        settings = found.config | {name: path for name in found.also if name != "weights"} | dict(config or {})
        base = weights or (path if "weights" in found.also else None)
        model = registry.build(method, preset, settings, weights=base)
        if model.untrained and base in (None, "", RANDOM):
            raise FssError("belongs to a pretrained model", hint="give --weights, the checkpoint it was trained on")
        model.load_trainable_state(found.state)
    except FssError as error:
        raise error if error.where else FssError(error.what, where=path, hint=error.hint) from error
    return model


def read_official(method: str, preset: str, tensors: dict[str, Tensor], path: str) -> OfficialCheckpoint:
    """Let the method read a file's tensors. Raises `FssError` naming the file and its first wrong key."""
    try:
        found: OfficialCheckpoint = _module(method).read(tensors, preset)
    except FssError as error:
        raise error if error.where else FssError(error.what, where=path, hint=error.hint) from error
    return found


def official_state(model: Segmenter) -> dict[str, Tensor]:
    """The model's trained tensors under the official code's names. Raises `FssError` if there is no official layout."""
    state: dict[str, Tensor] = _module(model.method).write(model)
    return state


def _module(method: str) -> ModuleType:
    registry.method_class(method)
    name = f"fss_models.methods.{method}.official"
    if importlib.util.find_spec(name) is None:
        raise FssError(f"method {method!r} has no official checkpoints")
    return importlib.import_module(name)


def _torch_file(path: str) -> dict[str, Any]:
    with torch.serialization.safe_globals([Namespace]):
        state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise ValueError(f"it holds a {type(state).__name__}")
    return state
