"""Choosing the winner, its refit, and its calibration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipelines.config.section import Positive, Section


class ChooseConfig(Section):
    """The rule for the winner: highest mean mIoU; where the interval of the difference contains 0, the faster wins.

    The interval is that of a paired bootstrap.
    """

    metric: Literal["miou", "fb_iou"] = "miou"
    confidence: float = Field(0.95, gt=0.5, lt=1)  # confidence of the intervals
    resamples: Positive = 1000  # bootstrap samples
    seed: int = 0  # seed of the bootstrap
    price_per_hour: float = Field(0.0, ge=0)  # of the machine that predicts; 0: no cost is shown
    currency: str = ""  # name of the price's currency
    # Whether a foundation model can win: its training data may show the classes that are tested as new ones.
    foundation_models: bool = False


class PromoteConfig(Section):
    """The refit of the winner on all classes."""

    steps: int = Field(0, ge=0)  # steps of the refit; 0: as many as the sweep's runs had (their median)


class CalibrateConfig(Section):
    """How the calibrator of a bundle is fitted (`fss calibrate`, `fss promote`)."""

    sets: int = Field(160, ge=0)  # number of support sets, one class after another; 0: `fss promote` fits none
    targets: Positive = 4  # for each support set, photos with the class, and as many without it
    seed: int = 0  # of the drawing of sets and targets
