"""Adapter files of the official SANSA code."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from fss_models.errors import FssError
from fss_models.methods.sansa.config import SansaConfig
from fss_models.methods.sansa.model import Sansa
from fss_models.official import OfficialCheckpoint
from fss_models.presets import find_preset
from fss_models.sam2_core.build import build_sam2
from fss_models.state_dict import check_state

_KEY = re.compile(r"sam\.image_encoder\.trunk\.blocks\.(\d+)\.adapter\.")


def read(state: dict[str, Tensor], preset: str) -> OfficialCheckpoint:
    """Read adapters of any bottleneck factor and stages; both follow from names and shapes.

    Raises `FssError` for a key that is no adapter's, a block that the preset lacks, stages that are adapted in part,
    and a shape that no factor gives.
    """
    if find_preset(preset).trunk != "hiera":
        raise FssError(f"official adapters do not fit preset {preset!r}", hint="give tiny, base_plus or large")
    for key in sorted(state):
        if not _KEY.match(key):
            raise FssError(f"unknown key {key!r}", hint="an official adapter file holds adapters alone")
    blocks = {int(m.group(1)) for k in state if (m := _KEY.match(k))}
    sam = build_sam2(preset)
    trunk = sam.image_encoder.trunk
    if unknown := [b for b in sorted(blocks) if b >= len(trunk.blocks)]:
        raise FssError(f"there is no block {unknown[0]} in preset {preset!r}", hint="is it of another size?")
    stages = _stages(blocks, trunk)
    config: dict[str, Any] = {"stages": stages, "factor": _factor(state, trunk, blocks), "rest": "frozen"}
    model = Sansa(preset=preset, config=SansaConfig(**config), sam=sam)
    model.set_trainable()
    ours = {"core." + k: v.float() for k, v in state.items()}
    trained = {n.removeprefix("core."): p.data for n, p in model.named_parameters() if p.requires_grad}
    check_state(state, trained, hint=f"is it an adapter of preset {preset!r}?")
    return OfficialCheckpoint(config=config, state=ours)


def write(model: Sansa) -> dict[str, Tensor]:
    """Name the adapters officially. Raises `FssError` if anything else was trained."""
    state = model.trainable_state()
    for name in sorted(state):
        if ".adapter." not in name:
            raise FssError(f"the official format has no place for {name!r}", hint="train adapters only")
    return {name.removeprefix("core."): value for name, value in state.items()}


def _stages(blocks: set[int], trunk: Any) -> tuple[int, ...]:
    starts = [0, *(end + 1 for end in trunk.stage_ends[:-1])]
    found = []
    for stage, (start, end) in enumerate(zip(starts, trunk.stage_ends, strict=True)):
        inside = set(range(start, end + 1))
        if inside & blocks:
            if missing := inside - blocks:
                raise FssError(f"lacks the adapter of block {min(missing)}", hint="stages are adapted as a whole")
            found.append(stage)
    return tuple(found)


def _factor(state: dict[str, Tensor], trunk: Any, blocks: set[int]) -> float:
    """The shortest decimal factor whose floor gives every block's bottleneck."""
    pairs = []
    for block in sorted(blocks):
        key = f"sam.image_encoder.trunk.blocks.{block}.adapter.down_proj.weight"
        if key not in state:
            raise FssError(f"lacks {key!r}")
        pairs.append((state[key].shape[0], int(trunk.blocks[block].dim)))
    for digits in (1, 2, 3, 4):
        for near in range(10**digits + 1):
            factor = near / 10**digits
            if all(max(1, int(factor * width)) == hidden for hidden, width in pairs):
                return factor
    raise FssError("the adapters' bottlenecks belong to no common factor", hint=f"is it another size? {pairs[0]}")
