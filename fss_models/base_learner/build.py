"""Building base learners at a preset. At nano the trunk keeps its ImageNet values and the head alone is trained."""

from __future__ import annotations

from fss_models.base_learner.head import WIDTH, PspHead
from fss_models.base_learner.learner import HEAD_FACTOR, BaseLearner
from fss_models.prior_guided.trunks import Trunk, build_trunk

_WIDTHS = {"debug": 32, "nano": 128}


def head_width(preset: str) -> int:
    """Channels before the classifier of a base learner at a preset."""
    return _WIDTHS.get(preset, WIDTH)


def trains_trunk(preset: str) -> bool:
    """Whether a base learner at a preset trains its trunk too, as published; nano's is frozen."""
    return preset != "nano"


def build_base_learner(
    preset: str, weights: str, *, classes: int, side: int = 0, head_factor: float = HEAD_FACTOR
) -> tuple[BaseLearner, Trunk]:
    """A base learner of `classes` classes on the ImageNet file `weights`, in training mode, and its trunk.

    `side` of the photos is in pixels; 0: the preset's. Raises `FssError` for a file that does not fit.
    """
    trunk = build_trunk(preset, weights or None, side=side)
    head = PspHead(trunk.backbone.channels[2], classes, width=head_width(preset))
    learner = BaseLearner(trunk.backbone, head, frozen=not trains_trunk(preset), head_factor=head_factor)
    return learner.train(), trunk
