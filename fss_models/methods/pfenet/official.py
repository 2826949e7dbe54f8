"""Checkpoints of the official PFENet code. They hold the trunk, whose statistics training moved, and the decoder.

A file does not say its scales and side: PASCAL-5i's are assumed; one of COCO-20i needs the setting side: 641.
"""

from __future__ import annotations

from fss_models.methods.pfenet.config import PfenetConfig
from fss_models.methods.pfenet.model import Pfenet
from fss_models.prior_guided.official import whole_checkpoint

read, write = whole_checkpoint(lambda preset: Pfenet(preset=preset, config=PfenetConfig()))
