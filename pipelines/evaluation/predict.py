"""Prediction of a single episode, as the evaluation does it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fss_models.clip import Prompt
from fss_models.segmenter import Segmenter
from pipelines.data.schema import EpisodeSample
from pipelines.evaluation.evaluate import full_size_mask, memorise_references


@torch.inference_mode()
def predict(model: Segmenter, sample: EpisodeSample, prompts: Sequence[Prompt] = ()) -> tuple[np.ndarray, float]:
    """Predict an episode: the target's mask [H, W] bool and its IoU, by the protocol of the evaluation.

    `prompts` mark the references; without them the masks of the references do.
    """
    target, memory = sample.targets[0], memorise_references(model, sample, prompts)
    query = model.encode(model.prepare([target.image]))
    found = model.segment(memory, query, torch.zeros(1, 2, dtype=torch.int64))
    return full_size_mask(found.logits[0], target, corners=model.corners_aligned)
