"""How the winner is chosen, refitted and calibrated."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipelines.config.section import Positive, Section


class ChooseConfig(Section):
    """The winner's rule: mean mIoU; if the paired bootstrap interval of the difference holds 0, the faster wins."""

    metric: Literal["miou", "fb_iou"] = "miou"
    confidence: float = Field(0.95, gt=0.5, lt=1)
    resamples: Positive = 1000
    seed: int = 0
    price_per_hour: float = Field(0.0, ge=0)  # of the machine that predicts, for the cost of a million images; 0: none
    currency: str = ""  # its name


class PromoteConfig(Section):
    """The refit on all classes."""

    steps: int = Field(0, ge=0)  # 0: as many as a run of the sweep


class CalibrateConfig(Section):
    """Fitting the calibrator of a bundle (`fss calibrate`, `fss promote`)."""

    sets: int = Field(160, ge=0)  # support sets drawn, classes in turn; 0: `fss promote` fits none
    targets: Positive = 4  # photos with the class, and as many without, a support set
    seed: int = 0
