"""Checks of settings that every method's configuration goes through."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin, get_type_hints

from fss_models.errors import FssError

#: where one mask for each object comes from (`fss_models.instances`)
InstanceSource = Literal["none", "model", "pieces", "prompts"]
#: the side of tiles in pixels of the photo (`fss_models.tiles`); 0: no tiles; auto: by the supports' objects
TileSide = int | Literal["auto"]
TILE_OVERLAP = 0.25  # default share of a tile's side that two neighbours share
LEAST_TILE = 64  # pixels


def tile_mistake(tile: TileSide, overlap: float, instances: InstanceSource) -> str:
    """What is wrong with settings of tiles, in one line; "" where nothing is."""
    if tile == 0:
        return "" if overlap == TILE_OVERLAP else "tile_overlap has no effect without tile (leave it out)"
    if tile != "auto" and tile < LEAST_TILE:
        return f"tile is {tile} (give at least {LEAST_TILE} pixels, auto, or 0 for whole photos)"
    if not 0 <= overlap <= 0.5:
        return f"tile_overlap is {overlap:g}, not between 0 and 0.5"
    if instances in ("model", "prompts"):
        return f"instances {instances} need whole photos, not tiles (use pieces, or leave out tile)"
    return ""


def weight_fields(config: type) -> list[str]:
    """Names of the fields that hold a file of pretrained weights, recognised by their ending."""
    return [name for name in get_type_hints(config) if name.endswith("_weights")]


def check_settings(config: Any) -> None:
    """Raises `FssError` for a value that its field does not allow, a fraction where a whole number is wanted, a count
    below 1 or a dropout outside [0, 1).
    """
    for name, kind in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if get_origin(kind) is Literal and value not in get_args(kind):
            raise FssError(f"{name} is {value!r}", hint=f"known: {', '.join(get_args(kind))}")
        if kind is int and isinstance(value, float) and not value.is_integer():
            raise FssError(f"{name} is {value}", hint="give a whole number")
        if name.endswith(("tokens", "steps", "rank")) and value < 1:
            raise FssError(f"{name} is {value}", hint="give at least 1")
        if name.endswith("dropout") and not isinstance(value, bool) and not 0 <= value < 1:
            raise FssError(f"{name} is {value}", hint="give a share from 0 to below 1")
