"""The choices of which parts of SAM 2 are trained, as one table (SANSA, NeurIPS 2025, tables 5 and 6).

    frozen       nothing
    adaptformer  adapters beside the MLPs of some stages: the paper's choice
    lora, mona, houlsby   the other adapters the paper compares, in the same stages
    qkv          every query-key-value projection of the trunk
    decoder      SAM's mask decoder
    backbone     the trunk
    full         everything
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fss_models.adapters import adaptformer, houlsby, lora, mona
from fss_models.errors import FssError

Tuning = Literal["frozen", "adaptformer", "lora", "mona", "houlsby", "qkv", "decoder", "backbone", "full"]
TRUNK = "image_encoder.trunk."


@dataclass(frozen=True, kw_only=True)
class _TuningKind:
    """One choice: it trains the parameters whose names contain `mark`; `attach` puts its new modules into the trunk."""

    mark: str
    attach: Callable[[Any, Sequence[int], float, int], object] | None = None


_TABLE: dict[str, _TuningKind] = {
    "frozen": _TuningKind(mark="\0"),
    "adaptformer": _TuningKind(mark=".adapter.",
                               attach=lambda t, s, f, r: adaptformer.adapt_trunk(t, stages=s, factor=f)),
    "lora": _TuningKind(mark=".lora.", attach=lambda t, s, f, r: lora.adapt_trunk(t, stages=s, rank=r)),
    "mona": _TuningKind(mark=".mona.", attach=lambda t, s, f, r: mona.adapt_trunk(t, stages=s, factor=f)),
    "houlsby": _TuningKind(mark=".houlsby.", attach=lambda t, s, f, r: houlsby.adapt_trunk(t, stages=s, factor=f)),
    "qkv": _TuningKind(mark=".attn.qkv."),
    "decoder": _TuningKind(mark="sam_mask_decoder."),
    "backbone": _TuningKind(mark=TRUNK),
    "full": _TuningKind(mark=""),
}


def attach(tuning: str, trunk: Any, *, stages: Sequence[int], factor: float, rank: int) -> None:
    """Put the modules that `tuning` adds into `trunk`.

    Raises `FssError` for an unknown name, a stage that the trunk lacks, and `qkv` on a trunk without attention.
    """
    if tuning not in _TABLE:
        raise FssError(f"unknown tuning {tuning!r}", hint=f"known: {', '.join(_TABLE)}")
    for stage in stages:
        if not 0 <= stage < len(trunk.stage_ends):
            raise FssError(f"the trunk has no stage {stage}", hint=f"stages are 0 to {len(trunk.stage_ends) - 1}")
    if tuning == "qkv" and not any(hasattr(b, "attn") for b in trunk.blocks):
        raise FssError("this trunk has no attention to tune", hint="use lora or backbone at nano")
    add = _TABLE[tuning].attach
    if add is not None:
        add(trunk, stages, factor, rank)


def tunes(tuning: str, name: str) -> bool:
    """Whether `tuning` trains the parameter `name`."""
    kind = _TABLE[tuning]
    return kind.mark in name and (kind.mark != ".attn.qkv." or TRUNK in name)
