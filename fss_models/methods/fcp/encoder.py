"""FCP's prompt encoder: prototypes of support and query, matched token to token.

Letters as in `prototype_prompts.parts`; a row is a query with one shot, T = `steps`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sam2.modeling.position_encoding import PositionEmbeddingSine
from torch import Tensor, nn

from fss_models.methods.fcp.config import FcpConfig
from fss_models.prior_guided.maps import cells, masked_mean
from fss_models.prototype_prompts.parts import ChannelReduction, GuidingLayer, TokenAttention

Maps = dict[str, Tensor]
SPAN_EPSILON = 1e-9


@dataclass(frozen=True, kw_only=True)
class SupportSide:
    """E references: tokens [E, N, D], prototypes "res" and "sam" [E, D], attention maps of the T steps [E, N, L]."""

    tokens: Tensor
    prototypes: Maps
    attention: list[Tensor]


@dataclass(frozen=True, kw_only=True)
class QuerySide:
    """E rows: prompts [E, N, D], maps of the T steps [E, N, L], masks of the steps before the last [E, 1, G, G].

    matching [E, N_S, N_Q] is the map of the prototype-prototype matching (empty without it).
    """

    prompts: Tensor
    attention: list[Tensor]
    masks: list[Tensor]
    matching: Tensor


class FcpEncoder(nn.Module):
    """Trained part of FCP. `channels` is that of the fused backbone features, `width` (D) that of SAM's prompts."""

    def __init__(self, config: FcpConfig, *, channels: int, width: int) -> None:
        super().__init__()
        self.config = config
        self._place: Any = PositionEmbeddingSine(width, warmup_cache=False)
        if config.features != "sam":
            self.reduce = ChannelReduction(channels, width, config.feature_dropout)
            self.guide_res = GuidingLayer(width)
        if config.features != "res":
            self.project = nn.Conv2d(width, width, 1, bias=False)
            self.guide_sam = GuidingLayer(width)
        self.support_tokens = nn.Embedding(config.support_tokens, width)
        self.support_steps = _steps(config, width)
        self.query_steps = _steps(config, width)
        if config.matching:
            self.query_tokens = nn.Embedding(config.query_tokens, width)
            self.match_cross = TokenAttention(width, config.match_dropout)
        self.match_self = TokenAttention(width)

    def lift(self, fused: Tensor, sam: Tensor) -> tuple[Maps, Maps]:
        """Images' fused features [N, C, G, G] and SAM embedding [N, D, G, G] -> maps "res", "sam" before guiding.

        Prototypes are means over the first maps (for SAM the raw embedding); the second are the guides' shares of them.
        """
        plain, lifted = {}, {}
        if self.config.features != "sam":
            plain["res"] = self.reduce(fused)
            lifted["res"] = self.guide_res.lift(plain["res"])
        if self.config.features != "res":
            plain["sam"] = sam
            lifted["sam"] = self.guide_sam.lift(self.project(sam).relu())
        return plain, lifted

    def support(self, fused: Tensor, sam: Tensor, mask: Tensor) -> SupportSide:
        """Prototypes of the references (eq. 1 to 4): fused [E, C, G, G], sam [E, D, G, G], mask [E, 1, G, G]."""
        plain, lifted = self.lift(fused, sam)
        return self.cover(lifted, {name: masked_mean(maps, mask) for name, maps in plain.items()}, mask)

    def cover(self, lifted: Maps, prototypes: Maps, mask: Tensor) -> SupportSide:
        """Support tokens from lifted maps [E, D, G, G] and prototypes [E, D] under mask [E, 1, G, G].

        Attention sees the cells of the mask only (all of them where the mask is empty).
        """
        guided = {name: self._guide(name, maps, prototypes, mask) for name, maps in lifted.items()}
        inside = mask.flatten(1) != 0
        allowed = inside | ~inside.any(dim=1, keepdim=True)
        tokens, attention = self.support_tokens.weight.expand(len(mask), -1, -1), []
        place = self._positions(mask)
        for t, step in enumerate(self.support_steps, start=1):
            key, value = self._key_value(guided, last=t == self.config.steps)
            tokens, seen = step(tokens, cells(key), cells(value), place=place, allowed=allowed)
            attention.append(seen)
        return SupportSide(tokens=tokens, prototypes=prototypes, attention=attention)

    def query(self, lifted: Maps, support: Tensor, prototypes: Maps, prior: Tensor) -> QuerySide:
        """Rows: lifted maps [E, D, G, G], support tokens [E, N, D], their prototypes [E, D], prior [E, 1, G, G].

        Both guides use the support's prototype (eq. 5 to 8), then the sides are matched (eq. 12).
        """
        tokens = self.query_tokens.weight.expand(len(prior), -1, -1) if self.config.matching else support
        place = self._positions(prior)
        attention: list[Tensor] = []
        masks: list[Tensor] = []
        for t, step in enumerate(self.query_steps, start=1):
            last = t == self.config.steps
            guided = self._guided_query(lifted, prototypes, prior, masks, last=last)
            key, value = self._key_value(guided, last=last)
            tokens, seen = step(tokens, cells(key), cells(value), place=place)
            attention.append(seen)
            if not last:
                masks.append(attention_mask(seen).unflatten(1, prior.shape[-2:])[:, None])
        matching = tokens.new_zeros(len(tokens), 0, 0)
        if self.config.matching:
            tokens, matching = self.match_cross(support, tokens, tokens)
        prompts, _ = self.match_self(tokens, tokens, tokens)
        return QuerySide(prompts=prompts, attention=attention, masks=masks, matching=matching)

    def _guided_query(self, lifted: Maps, prototypes: Maps, prior: Tensor, masks: list[Tensor], *, last: bool) -> Maps:
        """Maps that step reads, guided by the mask that `config.pseudo_mask` chooses."""
        kind = self.config.pseudo_mask
        latest = masks[-1] if masks else prior
        final = prior if kind == "conventional" else latest
        early = latest if kind == "attention" else prior
        if self.config.features == "both":
            names, chosen = ["sam", "res"] if last else ["sam"], {"sam": early, "res": final}
        else:
            names = [self.config.features]
            chosen = {names[0]: final if last else early}
        return {n: self._guide(n, lifted[n], prototypes, chosen[n]) for n in names}

    def _guide(self, name: str, lifted: Tensor, prototypes: Maps, mask: Tensor) -> Tensor:
        guide = self.guide_res if name == "res" else self.guide_sam
        guided: Tensor = guide(lifted, prototypes[name], mask)
        return guided

    def _key_value(self, guided: Maps, *, last: bool) -> tuple[Tensor, Tensor]:
        """Key and value of a step: SAM's features for both, except that the last step's value is the backbone's."""
        key = guided[self.config.features if self.config.features != "both" else "sam"]
        return key, guided["res"] if last and self.config.features == "both" else key

    def _positions(self, like: Tensor) -> Tensor:
        """Sine position code [L, D], y before x."""
        place: Tensor = self._place(like[:1])[0].to(like)
        return place.flatten(1).t()


def _steps(config: FcpConfig, width: int) -> nn.ModuleList:
    return nn.ModuleList([TokenAttention(width, config.attention_dropout) for _ in range(config.steps)])


def attention_mask(attention: Tensor) -> Tensor:
    """Attention-based pseudo mask (eq. 8) [E, N, L] -> [E, L] in [0, 1].

    Each token's map is min-max normalised over the cells first (released code), then the highest token counts.
    """
    low, high = attention.amin(dim=2, keepdim=True), attention.amax(dim=2, keepdim=True)
    return ((attention - low) / (high - low + SPAN_EPSILON)).amax(dim=1)
