"""VRP-SAM's prompt encoder: learned queries read the marked reference, then the query image.

Letters as in `prototype_prompts.parts`.
"""

from __future__ import annotations

from typing import Any

from sam2.modeling.position_encoding import PositionEmbeddingSine
from torch import Tensor, nn

from fss_models.prior_guided.maps import cells, masked_mean
from fss_models.prototype_prompts.analysis import TokenReading
from fss_models.prototype_prompts.parts import ChannelReduction, GuidingLayer, TokenAttention


class VrpEncoder(nn.Module):
    """Trained part of VRP-SAM. `channels` is that of the fused backbone features, `width` (D) that of SAM's prompts."""

    def __init__(self, *, tokens: int, channels: int, width: int, dropout: float) -> None:
        super().__init__()
        self._place: Any = PositionEmbeddingSine(width, warmup_cache=False)
        self.reduce = ChannelReduction(channels, width, dropout)
        self.guide = GuidingLayer(width)
        self.tokens = nn.Embedding(tokens, width)
        self.support_cross = TokenAttention(width)
        self.support_self = TokenAttention(width)
        self.query_cross = TokenAttention(width)
        self.query_self = TokenAttention(width)

    def lift(self, fused: Tensor) -> tuple[Tensor, Tensor]:
        """Fused features [N, C, G, G] -> reduced features and their share of the guiding layer, both [N, D, G, G]."""
        reduced = self.reduce(fused)
        return reduced, self.guide.lift(reduced)

    def support(self, fused: Tensor, mask: Tensor) -> tuple[TokenReading, Tensor]:
        """References [E, C, G, G] under mask [E, 1, G, G] -> what the tokens read, prototypes [E, D].

        The mask enters as a channel only: attention sees the whole image.
        """
        reduced, lifted = self.lift(fused)
        prototype = masked_mean(reduced, mask)
        tokens = self.tokens.weight.expand(len(mask), -1, -1)
        return self.read(self.guide(lifted, prototype, mask), tokens, self.support_cross, self.support_self), prototype

    def query(self, lifted: Tensor, tokens: Tensor, prototype: Tensor, prior: Tensor) -> TokenReading:
        """Rows: lifted [E, D, G, G], tokens [E, N, D], prototype [E, D], prior [E, 1, G, G] -> the prompts."""
        return self.read(self.guide(lifted, prototype, prior), tokens, self.query_cross, self.query_self)

    def read(self, guided: Tensor, tokens: Tensor, cross: nn.Module, own: nn.Module) -> TokenReading:
        """Tokens [E, N, D] attend the guided map [E, D, G, G], then each other."""
        flat = cells(guided)
        place: Tensor = self._place(guided[:1])[0].to(guided)
        tokens, seen = cross(tokens, flat, flat, place=place.flatten(1).t())
        tokens, among = own(tokens, tokens, tokens)
        return TokenReading(tokens=tokens, cross=seen, own=among)
