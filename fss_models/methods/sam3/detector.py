"""SAM 3's detector with prompts that are ready as tokens: text, boxes and points, from this picture or another."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fss_models.methods.sam3.config import Exemplar, Precision
from fss_models.methods.sam3.geometry import PointProjections, embed_boxes, embed_points, normed, prompt_tokens

LEVELS = ("fine", "middle", "coarse")


@dataclass(frozen=True, kw_only=True)
class Detections:
    """What the detector says about N pictures, for each of Q queries.

    logits [N, Q]; presence [N, 1] logits; boxes [N, Q, 4] x0 y0 x1 y1 shares; masks [N, Q, 4g, 4g] logits; semantic
    [N, 1, 4g, 4g] logits; queries [N, Q, C]
    """

    logits: Tensor
    presence: Tensor
    boxes: Tensor
    masks: Tensor
    semantic: Tensor
    queries: Tensor

    @property
    def scores(self) -> Tensor:
        """[N, Q] in [0, 1]: the query is an instance, times: the concept is in the picture."""
        return self.logits.sigmoid() * self.presence.sigmoid()


class Detector(nn.Module):
    """transformers' `Sam3Model`, called part by part, since its `forward` takes no ready prompt tokens.

    So the CLS token is there without boxes too, masks are enlarged as logits, and torchvision's RoI-align is not used.
    """

    def __init__(self, sam: Any, points: PointProjections | None = None) -> None:
        super().__init__()
        self.sam, self.points = sam, points

    @property
    def width(self) -> int:
        """C, the channels of maps and tokens."""
        return int(self.sam.geometry_encoder.hidden_size)

    def vision(self, pixels: Tensor, precision: Precision = "float32") -> dict[str, Tensor]:
        """Maps fine [N, C, 4g, 4g], middle [N, C, 2g, 2g] and coarse [N, C, g, g] of normalised pixels [N, 3, R, R]."""
        half = torch.autocast(pixels.device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()
        with half:
            hidden = self.sam.vision_encoder.backbone(pixels).last_hidden_state
            g = round(hidden.shape[1] ** 0.5)
            grid = hidden.transpose(1, 2).unflatten(2, (g, g))
            layers = self.sam.vision_encoder.neck.fpn_layers
            return {name: layer(grid).float() for name, layer in zip(LEVELS, layers, strict=True)}

    def text(self, ids: Tensor, valid: Tensor) -> Tensor:
        """Tokens [N, T, C] of words given as ids [N, T]; `valid` [N, T] is False at padding."""
        found: Tensor = self.sam.get_text_features(input_ids=ids, attention_mask=valid.long()).pooler_output
        return found

    def drop_text_encoder(self) -> None:
        """Free the text encoder, 42 % of the weights, once the tokens of every word that is needed are known."""
        self.sam.text_encoder = self.sam.text_projection = None

    def geometry(self, coarse: Tensor, boxes: Tensor, valid: Tensor, exemplar: Exemplar = "box",
                 positive: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokens [N, n + 1, C] and validity [N, n + 1] of boxes [N, n, 4] (cx cy w h, shares), or of their centres.

        coarse [N, C, g, g]; valid [N, n] bool; `positive` [N, n] bool: all of them by default
        """
        encoder = self.sam.geometry_encoder
        maps = normed(encoder, coarse)
        if exemplar == "point":
            assert self.points is not None
            embedded = embed_points(encoder, self.points, maps, boxes[..., :2])
        else:
            embedded = embed_boxes(encoder, maps, boxes)
        signs = torch.ones_like(valid) if positive is None else positive
        return prompt_tokens(encoder, embedded, signs, valid, coarse, self._places(coarse))

    def detect(self, maps: dict[str, Tensor], tokens: Tensor, valid: Tensor) -> Detections:
        """Find what tokens [N, T, C] with validity [N, T] describe in N pictures given by their `vision` maps."""
        sam, coarse = self.sam, maps["coarse"]
        fused = sam.detr_encoder(vision_features=[coarse], text_features=tokens, text_mask=valid,
                                 vision_pos_embeds=[self._places(coarse)])
        decoded = sam.detr_decoder(
            vision_features=fused.last_hidden_state, text_features=tokens, text_mask=valid,
            vision_pos_encoding=fused.pos_embeds_flattened, spatial_shapes=fused.spatial_shapes)
        queries = decoded.intermediate_hidden_states[-1]
        start = decoded.reference_boxes[-1].clamp(0, 1)
        start = start.clamp(min=_EDGE).log() - (1 - start).clamp(min=_EDGE).log()
        x, y, width, height = (start + sam.detr_decoder.box_head(queries)).sigmoid().unbind(-1)
        boxes = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], dim=-1)
        scored = sam.dot_product_scoring(decoder_hidden_states=queries[None], text_features=tokens, text_mask=valid)
        drawn = sam.mask_decoder(
            decoder_queries=queries, backbone_features=[maps[n] for n in LEVELS], prompt_features=tokens,
            encoder_hidden_states=fused.last_hidden_state, prompt_mask=valid)
        return Detections(logits=scored[0, ..., 0], presence=decoded.presence_logits[-1], boxes=boxes,
                          masks=drawn.pred_masks, semantic=drawn.semantic_seg, queries=queries)

    def _places(self, coarse: Tensor) -> Tensor:
        found: Tensor = self.sam.vision_encoder.neck.position_encoding(coarse.shape, coarse.device, coarse.dtype)
        return found


_EDGE = 1e-3  # a logit is taken of shares that are at least so far from 0 and 1
