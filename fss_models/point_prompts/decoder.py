"""SAM's mask decoder for many prompts of few photos: the package's weights and results, with less work.

Every prompt of a photo starts from the same image, so the image's projections in the first layer are made once a photo.
In later layers a prompt has few tokens and many cells: the projections act on the tokens instead of the cells, since
(q Wq) (x Wk)' = (q Wq Wk') x' and p (x Wv) = (p x) Wv. The last attention serves only the tokens that are read, and
masks are drawn only of the prompts that are asked for. Equal to the package's decoder but for rounding.

Letters: N photos, E prompts, t tokens of a prompt, L = G * G cells, D channels, H heads of d channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fss_models.prototype_prompts.sams import Maps, PromptedSam

_CACHED = 1 << 23  # bytes of a map [E, L, D] that a CPU works on at once: more leave its cache, fewer cost calls


@dataclass(frozen=True, kw_only=True)
class DecoderPhotos:
    """What the decoder computes of N photos, whatever their prompts.

    image [N, L, D]; place [L, D], the position code; keys, values [N, H, L, d] of the tokens' first look at the image
    queries [N, H, L, d] of the image's first look at the tokens
    fine [N, L, D], [N, 4 * L, D / 2]   what is added to the enlarged maps of 2 x 2 and 4 x 4 pixels a cell
    """

    image: Tensor
    place: Tensor
    keys: Tensor
    values: Tensor
    queries: Tensor
    fine: tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class DecodedPrompts:
    """E prompts before their masks are drawn: image [E, L, D], weights [E, D / 8, M] of the masks, ious [E, M]."""

    image: Tensor
    weights: Tensor
    ious: Tensor
    photo: Tensor


class PromptDecoder:
    """The mask decoder of a `PromptedSam` on the maps of N photos, as `PromptedSam.embed` gives them."""

    def __init__(self, sam: PromptedSam, maps: Maps) -> None:
        encoder, self.decoder = sam.parts()
        self.grid = maps["sam"].shape[-1]
        self.photos = self._look(maps, encoder)

    def chunks(self, photo: Tensor, limit: int) -> Iterator[Tensor]:
        """Rows of the prompts of photos `photo` [E], at most `limit` at once, on a CPU those of a photo that fit its
        cache.
        """
        rows = torch.arange(len(photo), device=photo.device)
        if photo.device.type != "cpu":
            return (some for some in rows.split(limit) if len(some))
        limit = max(1, min(limit, _CACHED // (4 * self.photos.image[0].numel())))
        own = [rows[photo == n] for n in photo.unique()]
        return (some for one in own for some in one.tensor_split(-(-len(one) // limit)))

    def decode(self, photo: Tensor, prompts: Tensor, *, several: bool) -> DecodedPrompts:
        """Decode prompts [E, n, D] of photos `photo` [E]: M = 1, of mask token 0; with `several` the tokens 1 to 3."""
        one = len(photo) > 0 and photo.device.type == "cpu" and bool((photo == photo[0]).all())
        photo = photo[:1] if one else photo
        transformer, at = self.decoder.transformer, self.photos
        tokens = torch.cat([self._own_tokens().expand(len(prompts), -1, -1), prompts], dim=1)
        first, *others = transformer.layers
        asked = self._first_tokens(first, tokens, photo)
        image = first.norm4(self._first_image(first.cross_attn_image_to_token, asked + tokens, asked, photo))
        for layer in others:
            placed = image + at.place
            asked = layer.norm1(asked + _attend(layer.self_attn, asked + tokens, asked))
            asked = layer.norm2(asked + _read_image(layer.cross_attn_token_to_image, asked + tokens, image, placed))
            asked = layer.norm3(asked + layer.mlp(asked))
            image = layer.norm4(_read_tokens(layer.cross_attn_image_to_token, image, placed, asked + tokens, asked))
        masks, skipped = [1, 2, 3] if several else [0], int(self.decoder.pred_obj_scores)
        read = [skipped, *(skipped + 1 + m for m in masks)]
        asked, tokens = asked[:, read], tokens[:, read]
        asked = transformer.norm_final_attn(asked + _read_image(
            transformer.final_attn_token_to_image, asked + tokens, image, image + at.place))
        made = [self.decoder.output_hypernetworks_mlps[m](asked[:, i + 1]) for i, m in enumerate(masks)]
        return DecodedPrompts(image=image, weights=torch.stack(made, dim=2), photo=photo,
                              ious=self.decoder.iou_prediction_head(asked[:, 0])[:, masks])

    def masks(self, found: DecodedPrompts, rows: Tensor | None = None) -> Tensor:
        """Logits [E, M, 4G, 4G] of the prompts, or of those of `rows`."""
        image, weights, photo = found.image, found.weights, found.photo
        if rows is not None:
            image, weights, photo = image[rows], weights[rows], photo[rows] if len(photo) > 1 else photo
        first, norm, activation, second, last = self.decoder.output_upscaling
        large = (image @ _by_pixel(first.weight)).add_(self.photos.fine[0][photo])
        large = activation(F.layer_norm(large.unflatten(2, (4, -1)), norm.weight.shape, norm.weight, norm.bias,
                                        norm.eps))
        large = (large.flatten(1, 2) @ _by_pixel(second.weight)).add_(self.photos.fine[1][photo])
        large = last(large).unflatten(2, (4, -1)).flatten(1, 2)  # [E, 16 * L, D / 8]
        grid = self.grid
        parts = (weights.mT @ large.mT).float().unflatten(2, (grid, grid, 2, 2, 2, 2))
        return parts.permute(0, 1, 2, 4, 6, 3, 5, 7).reshape(*parts.shape[:2], 4 * grid, 4 * grid)

    def _look(self, maps: Maps, encoder: Any) -> DecoderPhotos:
        layer, up = self.decoder.transformer.layers[0], self.decoder.output_upscaling
        image = (maps["sam"] + encoder.no_mask_embed.weight.view(1, -1, 1, 1)).flatten(2).mT.contiguous()
        place = encoder.get_dense_pe()[0].flatten(1).t().contiguous()
        ask, answer = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
        grid, biases = self.grid, (up[0].bias, up[3].bias)
        if "f1" in maps:
            fine1, fine0 = (maps[k] + bias[:, None, None] for k, bias in zip(("f1", "f0"), biases, strict=True))
            fine1 = fine1.unflatten(3, (grid, 2)).unflatten(2, (grid, 2)).permute(0, 2, 4, 3, 5, 1)
            fine0 = fine0.unflatten(3, (grid, 2, 2)).unflatten(2, (grid, 2, 2)).permute(0, 2, 5, 3, 6, 4, 7, 1)
            fine = fine1.flatten(3).flatten(1, 2), fine0.flatten(5).flatten(1, 4)
        else:
            fine1, fine0 = (bias.repeat(4).expand(len(image), 1, -1) for bias in biases)
            fine = fine1, fine0
        return DecoderPhotos(image=image, place=place, keys=_heads(ask, ask.k_proj(image + place)).contiguous(),
                             values=_heads(ask, ask.v_proj(image)).contiguous(),
                             queries=_heads(answer, answer.q_proj(image + place)).contiguous(), fine=fine)

    def _own_tokens(self) -> Tensor:
        """The decoder's own tokens [t, D]."""
        own = [self.decoder.iou_token.weight, self.decoder.mask_tokens.weight]
        return torch.cat([self.decoder.obj_score_token.weight, *own] if self.decoder.pred_obj_scores else own)

    def _first_tokens(self, layer: Any, tokens: Tensor, photo: Tensor) -> Tensor:
        """Tokens [E, t, D] after the first layer."""
        attention = layer.cross_attn_token_to_image
        keys, values = self.photos.keys[photo], self.photos.values[photo]
        asked = layer.norm1(_attend(layer.self_attn, tokens, tokens))
        query = _by_photo(_scaled(_heads(attention, attention.q_proj(asked + tokens))), len(keys))
        seen = _by_prompt((query @ keys.mT).softmax(dim=3) @ values, len(tokens))
        asked = layer.norm2(asked + attention.out_proj(seen.transpose(1, 2).flatten(2)))
        return layer.norm3(asked + layer.mlp(asked))  # type: ignore[no-any-return]

    def _first_image(self, attention: Any, keys: Tensor, values: Tensor, photo: Tensor) -> Tensor:
        """Images [E, L, D] after the first layer, before its last normalisation."""
        queries = self.photos.queries[photo]
        key = _by_photo(_scaled(_heads(attention, attention.k_proj(keys))), len(queries))
        shares = _by_prompt(key @ queries.mT, len(keys)).softmax(dim=2)
        return _mixed(attention, self.photos.image[photo], shares, values)


def _heads(attention: Any, values: Tensor) -> Tensor:
    """[E, t, H * d] -> [E, H, t, d]."""
    return values.unflatten(2, (attention.num_heads, -1)).transpose(1, 2)


def _scaled(heads: Tensor) -> Tensor:
    return heads * heads.shape[-1] ** -0.5


def _by_photo(heads: Tensor, photos: int) -> Tensor:
    """[E, H, t, d] -> [P, H, E / P * t, d], for prompts of one photo (P = 1) or of one photo each (P = E)."""
    return heads.unflatten(0, (photos, -1)).transpose(1, 2).flatten(2, 3)


def _by_prompt(heads: Tensor, prompts: int) -> Tensor:
    """`_by_photo` undone."""
    return heads.unflatten(2, (prompts // len(heads), -1)).transpose(1, 2).flatten(0, 1)


def _attend(attention: Any, asked: Tensor, values: Tensor) -> Tensor:
    """The package's attention among tokens [E, t, D]; its softmax runs along the tensor's middle, which is faster."""
    query, key, value = (_heads(attention, p(x)) for p, x in (
        (attention.q_proj, asked), (attention.k_proj, asked), (attention.v_proj, values)))
    shares = (key @ _scaled(query).mT).softmax(dim=2)
    found: Tensor = attention.out_proj((shares.mT @ value).transpose(1, 2).flatten(2))
    return found


def _folded(heads: Tensor, weight: Tensor) -> Tensor:
    """Heads [E, H, t, d] through their part of a weight [H, d, D]: [E, H * t, D]."""
    return torch.einsum("ehtd,hdc->ehtc", heads, weight).flatten(1, 2)


def _of_heads(attention: Any, weight: Tensor) -> Tensor:
    """A weight [H * d, D] as [H, d, D]."""
    return weight.unflatten(0, (attention.num_heads, -1))


def _read_image(attention: Any, tokens: Tensor, image: Tensor, placed: Tensor) -> Tensor:
    """Attention of tokens [E, t, D] to images [E, L, D]; keys come from `placed`. A bias of keys changes no share."""
    query = _scaled(_heads(attention, attention.q_proj(tokens)))
    shares = (_folded(query, _of_heads(attention, attention.k_proj.weight)) @ placed.mT).softmax(dim=2)
    seen = (shares @ image).unflatten(1, (attention.num_heads, -1))
    values = torch.einsum("ehtc,hdc->ethd", seen, _of_heads(attention, attention.v_proj.weight)).flatten(2)
    found: Tensor = attention.out_proj(values + attention.v_proj.bias)
    return found


def _read_tokens(attention: Any, image: Tensor, placed: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Images [E, L, D] plus their attention, from `placed`, to tokens [E, t, D]."""
    key = _scaled(_heads(attention, attention.k_proj(keys)))
    bias = (key @ attention.q_proj.bias.unflatten(0, (attention.num_heads, -1))[:, :, None]).flatten(1, 2)
    likeness = torch.baddbmm(bias, _folded(key, _of_heads(attention, attention.q_proj.weight)), placed.mT)
    return _mixed(attention, image, likeness.unflatten(1, (attention.num_heads, -1)).softmax(dim=2), values)


def _mixed(attention: Any, image: Tensor, shares: Tensor, values: Tensor) -> Tensor:
    """Images [E or 1, L, D] plus the tokens' values [E, t, D] by `shares` [E, H, t, L].

    A head's shares of a cell sum to 1, so each head brings its part of the last bias.
    """
    value = _folded(_heads(attention, attention.v_proj(values)), _of_heads(attention, attention.out_proj.weight.t()))
    value = value + attention.out_proj.bias / attention.num_heads
    return torch.baddbmm(image.expand(len(value), -1, -1), shares.flatten(1, 2).mT, value)


def _by_pixel(weight: Tensor) -> Tensor:
    """A transposed convolution's weight [D, C, 2, 2] as a matrix [D, 4 * C], pixel by pixel."""
    return weight.permute(0, 2, 3, 1).flatten(1)
