"""How much can encoding the supports once save GF-SAM at its published sizes? By counted operations.

GF-SAM compares cells of DINOv2 and draws masks with SAM. Its released loop encodes the supports with DINOv2 again for
each query; SAM sees the query alone. `bound` is the operations of that loop over those of one query, both with `points`
prompts in SAM's decoder: what keeping the supports gains, and nothing else; a cheaper decoder or batches may gain more.
Nothing runs: PyTorch counts operations on tensors without values. `tflop` are those of one photo, or of one point.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from fss_models.backbones.dinov2 import build_dinov2
from fss_models.point_prompts.build import PUBLISHED
from fss_models.sam1.build import SIZES, Sam1

CONFIG: dict[str, Any] = {"preset": "official", "shots": 5, "points": 42, "dino_side": 518, "threads": 1}


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Operations of DINOv2, of SAM's encoder and of a point in its decoder, and the bound."""
    published = PUBLISHED[config["preset"]]
    with torch.device("meta"):
        sam, dino = Sam1(SIZES[published.sam]), build_dinov2(published.cells.removeprefix("dinov2_"))
    side, square = SIZES[published.sam].side, config["dino_side"]
    cells = torch.empty(1, 3, square, square, device="meta")
    tflop = {"dinov2": _count(lambda: dino(cells)),
             "sam": _count(lambda: sam.embed(torch.empty(1, 3, side, side, device="meta"))),
             "point": _count(lambda: _decode(sam, side // 16, 64)) / 64}
    query = tflop["dinov2"] + tflop["sam"] + config["points"] * tflop["point"]
    bound = (query + config["shots"] * tflop["dinov2"]) / query
    return {"ratio": bound, "bound": bound, "tflop": tflop}


def _decode(sam: Any, grid: int, points: int) -> None:
    width = sam.mask_decoder.transformer_dim
    image = torch.empty(1, width, grid, grid, device="meta")
    sam.mask_decoder(
        image_embeddings=image, image_pe=image, sparse_prompt_embeddings=torch.empty(points, 2, width, device="meta"),
        dense_prompt_embeddings=torch.empty(points, width, grid, grid, device="meta"), multimask_output=True,
        repeat_image=True)


def _count(call: Callable[[], Any]) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    found: float = counter.get_total_flops() / 1e12
    return found
