"""Checkpoints of the official BAM and HDMNet codes: trunk, base learner and trained layers in one file.

An official base learner's own file (BAM's `best.pth`) is read by `read_base_learner`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from fss_models.base_learner.head import CLASSIFIER
from fss_models.base_learner.segmenter import BaseLearnerSegmenter
from fss_models.errors import FssError
from fss_models.official import OfficialCheckpoint
from fss_models.prior_guided.official import Reader, Writer, read_whole, write_whole
from fss_models.prototype_prompts.official import Rules, rename, without_prefix

COMMON: Rules = (
    ("layer", "backbone.layer"),
    ("gram_merge.", "decoder.ensemble.adjust."),
    ("cls_merge.", "decoder.ensemble.merge."),
    ("kshot_rw.", "decoder.shot_weights.mix."),
)
OTHERS: Rules = (("", "decoder."),)
_TWICE = "encoder."  # official base learners hold their trunk a second time below it


def checkpoint(
    make: Callable[[str, dict[str, Any]], BaseLearnerSegmenter], rules: Rules
) -> tuple[Reader, Writer]:
    """`read` and `write` of the method that `make` builds from a preset and a configuration."""
    official = partial(rename, rules=rules, forward=False)

    def read(state: Mapping[str, Tensor], preset: str) -> OfficialCheckpoint:
        """Read all tensors, and K. Raises `FssError` naming the first missing, unknown or misshapen one."""
        given = without_prefix(state)
        weight = given.get("kshot_rw.0.weight")
        config = {"shots": 1 if weight is None else int(weight.shape[1])}
        classifier = official(f"base_head.{CLASSIFIER}weight")

        def build() -> BaseLearnerSegmenter:
            model = make(preset, config)
            model.base_head.fit_classifier({f"{CLASSIFIER}weight": given[classifier]} if classifier in given else {})
            return model

        return OfficialCheckpoint(config=config, state=read_whole(given, build, preset, official))

    def write(model: BaseLearnerSegmenter) -> dict[str, Tensor]:
        """Convert the model to an official checkpoint. Raises `FssError` if its trunk is not an official one."""
        return write_whole(model, official)

    return read, write


def read_base_learner(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an official base learner as `load_base_learner` takes them: without `module.` and the copies."""
    found = {k: v for k, v in without_prefix(state).items() if not k.startswith(_TWICE)}
    if f"{CLASSIFIER}weight" not in found:
        raise FssError(f"lacks '{CLASSIFIER}weight'", hint="is it the file of a base learner?")
    return found
