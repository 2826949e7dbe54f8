"""Configuration of INSID3."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Insid3Config:
    """Settings of INSID3. The defaults are the released code's; None: the preset's (`presets.py` says from where).

    side               R in pixels, a multiple of 16; 1024 in the released code
    svd_components     s, the number of positional directions that are removed; 500 in the released code
    tau                cosine up to which clusters merge; 0.6 in the released code
    merge_threshold    a cluster is kept if cross * intra * area is above it; 0.2 in the released code
    fallback_quantile  where nothing is similar to the prototype, patches above this quantile are
    vote_share         share of the references, rounded up, whose nearest patch must be on the object
    """

    side: int | None = None
    svd_components: int | None = None
    tau: float | None = None
    merge_threshold: float | None = None
    fallback_quantile: float = 0.9
    vote_share: float = 0.5
