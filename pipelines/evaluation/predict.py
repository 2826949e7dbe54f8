"""Prediction of a single episode, as the evaluation does it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fss_models.clip import Prompt
from fss_models.metrics import episode_counts
from fss_models.prompts import mask_prompt
from fss_models.segmenter import Segmenter
from pipelines.data.schema import EpisodeSample
from pipelines.evaluation.evaluate import at_size


@torch.inference_mode()
def predict(model: Segmenter, sample: EpisodeSample, prompts: Sequence[Prompt] = ()) -> tuple[np.ndarray, float]:
    """Predict an episode: the target's mask [H, W] bool and its IoU, by the protocol of the evaluation.

    `prompts` mark the references; without them the masks of the references do.
    """
    target = sample.targets[0]
    support = model.encode(model.prepare([r.image for r in sample.references]))
    given = list(prompts) or [mask_prompt(r.mask) for r in sample.references]
    query = model.encode(model.prepare([target.image]))
    memory = model.memorise(support, model.collate([given], support.sizes, names=[sample.class_name]))
    found = model.segment(memory, query, torch.zeros(1, 2, dtype=torch.int64))
    mask = at_size(found.logits[0], target.mask.shape, corners=model.corners_aligned) > 0
    inter, union = episode_counts(mask, _tensor(target.mask), _tensor(target.ignore))
    return mask.numpy(), inter[1] / max(union[1], 1)


def _tensor(mask: np.ndarray) -> Any:
    return torch.from_numpy(np.ascontiguousarray(mask))
