"""Everything that FCP and VRP-SAM computed on the way to a prediction, for analyses.

Letters: P pairs with K shots each, E rows (shot by shot within a pair), T steps, N tokens, G the grid's side, R the
image's side, D the width of a prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fss_models.clip import Prediction


@dataclass(frozen=True, kw_only=True)
class FcpAnalysis:
    """Attention, masks and prompts of FCP.

    pair, shot [E]             the pair and the shot that a row belongs to
    support_attention          T maps [E, N_S, G * G]
    query_attention            T maps [E, N_Q, G * G]
    matching [E, N_S, N_Q]     prototype-prototype matching
    conventional [E, 1, G, G]  prior mask; attention_masks: T - 1 maps [E, 1, G, G], to be cut at 0.5
    prompts [E, N, D], shot_logits [E, R, R], prediction: as `segment` returns it
    """

    pair: Tensor
    shot: Tensor
    support_attention: list[Tensor]
    query_attention: list[Tensor]
    matching: Tensor
    conventional: Tensor
    attention_masks: list[Tensor]
    prompts: Tensor
    shot_logits: Tensor
    prediction: Prediction


@dataclass(frozen=True, kw_only=True)
class TokenReading:
    """VRP-SAM's tokens [E, N, D] after they read one image, with the maps of their attention.

    cross [E, N, L]  attention over the image's L cells; own [E, N, N]: attention among the tokens
    """

    tokens: Tensor
    cross: Tensor
    own: Tensor


@dataclass(frozen=True, kw_only=True)
class VrpAnalysis:
    """Attention and prior masks of VRP-SAM.

    pair, shot [E]      the pair and the shot that a row belongs to
    support, query      what the tokens read in the reference and in the query image
    prior [E, 1, G, G]  conventional mask
    prediction          as `segment` returns it
    """

    pair: Tensor
    shot: Tensor
    support: TokenReading
    query: TokenReading
    prior: Tensor
    prediction: Prediction
