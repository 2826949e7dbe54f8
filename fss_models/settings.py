"""Checks of settings that every method's configuration goes through."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin, get_type_hints

from fss_models.errors import FssError

#: where one mask for each object comes from (`fss_models.instances`)
InstanceSource = Literal["none", "model", "pieces", "prompts"]


def weight_fields(config: type) -> list[str]:
    """Names of the fields that hold a file of pretrained weights, recognised by their ending."""
    return [name for name in get_type_hints(config) if name.endswith("_weights")]


def check_settings(config: Any) -> None:
    """Raises `FssError` for a value that its field does not allow, a count below 1 or a dropout outside [0, 1)."""
    for name, kind in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if get_origin(kind) is Literal and value not in get_args(kind):
            raise FssError(f"{name} is {value!r}", hint=f"known: {', '.join(get_args(kind))}")
        if name.endswith(("tokens", "steps", "rank")) and value < 1:
            raise FssError(f"{name} is {value}", hint="give at least 1")
        if name.endswith("dropout") and not isinstance(value, bool) and not 0 <= value < 1:
            raise FssError(f"{name} is {value}", hint="give a share from 0 to below 1")
