"""One support set and many photos of noise, labelled together or one episode at a time. Needs only torch and timm."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from fss_models.clip import Images, PromptBatch
from fss_models.prompts import mask_prompt
from fss_models.segmenter import Segmenter


def noise_photos(model: Segmenter, count: int, side: int, seed: int) -> Images:
    """`count` photos of noise, `side` x `side` pixels, as the model prepares them."""
    rng = np.random.default_rng([seed, count])
    return model.prepare([rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(count)])


def centred_disc(height: int, width: int, part: float = 4) -> np.ndarray:
    """Mask [height, width] bool of a disc in the middle; its radius is the shorter side divided by `part`."""
    y, x = np.mgrid[:height, :width]
    return np.asarray((y - height / 2) ** 2 + (x - width / 2) ** 2 < (min(height, width) / part) ** 2)


def disc_marks(model: Segmenter, supports: Images, side: int) -> PromptBatch:
    """A disc marked in each of `supports` [K], photos of `side` pixels; together they are one support set."""
    disc = mask_prompt(centred_disc(side, side))
    marks: PromptBatch = model.collate([[disc] * len(supports)], supports.sizes.cpu()).to(model.device)
    return marks


def first_set_pairs(count: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """The pairs [count, 2] of the first support set with each of `count` images."""
    return torch.stack([torch.zeros(count, dtype=torch.int64), torch.arange(count)], dim=1).to(device)


def label_together(
    model: Segmenter, supports: Images, marks: PromptBatch, queries: Images, batch: int
) -> Iterator[torch.Tensor]:
    """Logits [batch, R, R] of the queries, batch by batch: the supports are encoded and memorised once."""
    memory = model.memorise(model.encode(supports), marks)
    for first in range(0, len(queries), batch):
        features = model.encode(queries.rows(first, first + batch))
        yield model.segment(memory, features, first_set_pairs(len(features), model.device)).logits.float()


def label_separately(
    model: Segmenter, supports: Images, marks: PromptBatch, queries: Images
) -> Iterator[torch.Tensor]:
    """Logits [1, R, R] of each query as published evaluation code computes them: an episode of its own."""
    for i in range(len(queries)):
        episode = Images.join([supports, queries.rows(i, i + 1)])
        features = model.encode(episode.to(model.device))
        pair = torch.tensor([[0, len(supports)]], device=model.device)
        yield model.segment(model.memorise(features, marks), features, pair).logits.float()


def autocast(config: dict[str, object]) -> torch.autocast:
    """bfloat16 on `config["device"]` if `config["precision"]` says so, else no change."""
    return torch.autocast(str(config["device"]).split(":")[0], torch.bfloat16, config["precision"] == "bfloat16")
