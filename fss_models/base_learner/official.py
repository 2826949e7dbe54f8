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
from fss_models.prior_guided.official import read_whole, write_whole
from fss_models.prototype_prompts.official import Rules, rename, without_prefix

COMMON: Rules = (
    ("layer", "backbone.layer"),
    ("gram_merge.", "decoder.ensemble.adjust."),
    ("cls_merge.", "decoder.ensemble.merge."),
    ("kshot_rw.", "decoder.shot_weights.mix."),
)
OTHERS: Rules = (("", "decoder."),)
_TWICE = "encoder."  # official base learners hold their trunk a second time below it


def read(
    state: Mapping[str, Tensor], make: Callable[[dict[str, Any]], BaseLearnerSegmenter], preset: str, rules: Rules
) -> OfficialCheckpoint:
    """Read an official checkpoint of the model that `make` builds from a configuration; its K is told by the file.

    Raises `FssError` naming the first missing, unknown or misshapen tensor.
    """
    given = without_prefix(state)
    weight = given.get("kshot_rw.0.weight")
    config = {"shots": 1 if weight is None else int(weight.shape[1])}
    official = rename(f"base_head.{CLASSIFIER}weight", rules, forward=False)

    def build() -> BaseLearnerSegmenter:
        model = make(config)
        model.base_head.fit_classifier({f"{CLASSIFIER}weight": given[official]} if official in given else {})
        return model

    return OfficialCheckpoint(config=config, state=read_whole(given, build, preset, partial(_official, rules=rules)))


def write(model: BaseLearnerSegmenter, rules: Rules) -> dict[str, Tensor]:
    """Convert the model to an official checkpoint. Raises `FssError` if its trunk is not an official one."""
    return write_whole(model, partial(_official, rules=rules))


def _official(key: str, rules: Rules) -> str:
    return rename(key, rules, forward=False)


def read_base_learner(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an official base learner as `load_base_learner` takes them: without `module.` and the copies."""
    found = {k: v for k, v in without_prefix(state).items() if not k.startswith(_TWICE)}
    if f"{CLASSIFIER}weight" not in found:
        raise FssError(f"lacks '{CLASSIFIER}weight'", hint="is it the file of a base learner?")
    return found
