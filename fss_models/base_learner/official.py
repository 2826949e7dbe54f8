"""Checkpoints of the official BAM and HDMNet codes: trunk, base learner and trained layers in one file.

An official base learner's own file (BAM's `best.pth`) is read by `read_base_learner`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fss_models.base_learner.build import trains_trunk
from fss_models.base_learner.head import CLASSIFIER
from fss_models.base_learner.segmenter import BaseLearnerSegmenter
from fss_models.errors import FssError
from fss_models.official import OfficialCheckpoint
from fss_models.prototype_prompts.official import PREFIX, Rules, rename, without_prefix
from fss_models.state_dict import check_state

COMMON: Rules = (
    ("layer", "backbone.layer"),
    ("gram_merge.", "decoder.ensemble.adjust."),
    ("cls_merge.", "decoder.ensemble.merge."),
    ("kshot_rw.", "decoder.shot_weights.mix."),
)
OTHERS: Rules = (("", "decoder."),)
_TWICE = "encoder."  # official base learners hold their trunk a second time below it


def implied_shots(state: Mapping[str, Tensor]) -> int:
    """K of an official checkpoint: 1 where no weights of shots are learnt."""
    weight = state.get("kshot_rw.0.weight")
    return 1 if weight is None else int(weight.shape[1])


def read(state: Mapping[str, Tensor], make: Callable[[], BaseLearnerSegmenter], rules: Rules, config: dict[str, Any]
         ) -> OfficialCheckpoint:
    """Read an official checkpoint of the model that `make` builds, with the settings `config`.

    Raises `FssError` naming the first missing, unknown or misshapen tensor.
    """
    given = without_prefix(state)
    with torch.device("meta"):
        model = make()
    _check_official(model)
    ours = {rename(k, rules, forward=True): v for k, v in given.items()}
    model.base_head.fit_classifier(ours, "base_head.")
    want = {rename(k, rules, forward=False): k for k in model.trainable_names()}
    shapes = model.state_dict()
    check_state(given, {theirs: shapes[k] for theirs, k in want.items()}, hint="is it the file of this preset?")
    return OfficialCheckpoint(config=config, state={k: given[theirs] for theirs, k in want.items()})


def write(model: BaseLearnerSegmenter, rules: Rules) -> dict[str, Tensor]:
    """Name all tensors officially, with `module.` in front, on the CPU. Raises `FssError` for other trunks."""
    _check_official(model)
    return {PREFIX + rename(k, rules, forward=False): v for k, v in model.trainable_state().items()}


def read_base_learner(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an official base learner as `load_base_learner` takes them: without `module.` and the copies."""
    found = {k: v for k, v in without_prefix(state).items() if not k.startswith(_TWICE)}
    if f"{CLASSIFIER}weight" not in found:
        raise FssError(f"lacks '{CLASSIFIER}weight'", hint="is it the file of a base learner?")
    return found


def _check_official(model: BaseLearnerSegmenter) -> None:
    if not trains_trunk(model.preset):
        raise FssError(f"the official layout has no place for the trunk of {model.preset!r}",
                       hint="use resnet50, resnet101 or vgg16")
