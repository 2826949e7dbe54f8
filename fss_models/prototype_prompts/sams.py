"""SAM v1 and SAM 2 behind one interface: an image embedding, and a mask decoder that takes vectors as prompts.

The vectors are learned (no point type, no position code, no padding token) or come from `PromptedSam.point_prompts`;
the dense embedding is SAM's "no mask".
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fss_models.clip import Features, Memory
from fss_models.sam1.build import Sam1
from fss_models.sam2_core.core import Sam2Core
from fss_models.segmenter import Segmenter

DECODER_MAPS = ("sam", "f0", "f1")  # the maps of `Features` that the mask decoder reads
Maps = dict[str, Tensor]


class PromptedSam(nn.Module, ABC):
    """A SAM: `side` is the input's side in pixels, `width` (D) that of embedding and prompts, `grid` = side / 16."""

    side: int
    width: int

    @property
    def grid(self) -> int:
        """G, the side of the image embedding."""
        return self.side // 16

    @abstractmethod
    def look(self, pixels: Tensor) -> Maps:
        """Frozen maps of [N, 3, side, side], without gradients: "sam", or the trunk's "stage0" ... "stage3"."""

    @abstractmethod
    def embed(self, maps: Maps) -> Maps:
        """Finish `look`'s maps: "sam" [N, D, G, G] and the other maps that `decode` reads."""

    @abstractmethod
    def parts(self) -> tuple[Any, Any]:
        """The package's prompt encoder and mask decoder."""

    @abstractmethod
    def candidates(self, maps: Maps, prompts: Tensor, *, several: bool) -> tuple[Tensor, Tensor]:
        """Decode maps of E images with prompts [E, n, D]: logits [E, M, 4G, 4G] and predicted IoU [E, M].

        M = 1, of mask token 0; with `several` M = 3, of the tokens 1 to 3.
        """

    def point_prompts(self, points: Tensor, boxes: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """SAM's own prompts [E, n + 1, D] for points [E, n, 2] (x, y), in pixels of the square.

        labels [E, n]: 1 on the object, 0 off it; by default all are on it. SAM adds half a pixel, and a padding point;
        with boxes [E, 4] (x0, y0, x1, y1) it adds two corners instead: [E, n + 2, D].
        """
        if labels is None:
            labels = torch.ones(points.shape[:2], dtype=torch.int32, device=points.device)
        found: Tensor = self.parts()[0](points=(points.float(), labels), boxes=boxes, masks=None)[0]
        return found

    def decode(self, maps: Maps, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Decode maps of E images with prompts [E, n, D]: logits [E, 4G, 4G] of mask token 0 and predicted IoU [E]."""
        logits, ious = self.candidates(maps, prompts, several=False)
        return logits[:, 0], ious[:, 0]


class PromptedSam1(PromptedSam):
    """SAM v1; the image encoder never needs gradients."""

    def __init__(self, model: Sam1) -> None:
        super().__init__()
        self.model = model
        self.side, self.width = model.size.side, model.size.prompt_width

    def look(self, pixels: Tensor) -> Maps:
        """Compute the image embedding, "sam"."""
        with torch.no_grad():
            return {"sam": self.model.embed(pixels)}

    def embed(self, maps: Maps) -> Maps:
        """Return the maps unchanged: `look` already gives the embedding."""
        return {"sam": maps["sam"]}

    def parts(self) -> tuple[Any, Any]:
        """As `PromptedSam.parts`."""
        return self.model.prompt_encoder, self.model.mask_decoder

    def candidates(self, maps: Maps, prompts: Tensor, *, several: bool) -> tuple[Tensor, Tensor]:
        """Decode as `PromptedSam.candidates` describes."""
        return _decode(*self.parts(), maps, prompts, None, several)


class PromptedSam2(PromptedSam):
    """SAM 2 on still images: the embedding of a first frame, the decoder with its two finer maps f0 and f1."""

    def __init__(self, core: Sam2Core) -> None:
        super().__init__()
        self.core = core
        self.side, self.width = core.side, int(core.sam.hidden_dim)

    def look(self, pixels: Tensor) -> Maps:
        """Compute the trunk's stages, at strides 4, 8, 16 and 32."""
        with torch.no_grad():
            stages: list[Tensor] = self.core.sam.image_encoder.trunk(pixels)
        return {f"stage{i}": stage for i, stage in enumerate(stages)}

    def embed(self, maps: Maps) -> Maps:
        """Run neck and decoder convolutions; the embedding is that of an image without memory."""
        encoder, decoder = self.core.sam.image_encoder, self.core.sam.sam_mask_decoder
        levels = encoder.neck([maps[f"stage{i}"] for i in range(4)])[0]
        f0, f1, f2 = levels[: -encoder.scalp] if encoder.scalp else levels
        return {"sam": f2 + self.core.sam.no_mem_embed.view(1, -1, 1, 1),
                "f0": decoder.conv_s0(f0), "f1": decoder.conv_s1(f1)}

    def parts(self) -> tuple[Any, Any]:
        """As `PromptedSam.parts`."""
        return self.core.sam.sam_prompt_encoder, self.core.sam.sam_mask_decoder

    def candidates(self, maps: Maps, prompts: Tensor, *, several: bool) -> tuple[Tensor, Tensor]:
        """Decode as `PromptedSam.candidates` describes; nothing blanks a mask by its object score."""
        return _decode(*self.parts(), maps, prompts, [maps["f0"], maps["f1"]], several)


class PointDecoder(Segmenter, ABC):
    """A method around the part `sam`, whose embedding is among its features: the decoder takes points too."""

    instance_sources: ClassVar[frozenset[str]] = frozenset({"pieces", "prompts"})
    sam: PromptedSam

    @property
    def mask_side(self) -> int:
        """The side of SAM's masks."""
        return 4 * self.sam.grid

    def decode_points(self, memory: Memory, features: Features, pairs: Tensor, points: Tensor,
                      labels: Tensor) -> tuple[Tensor, Tensor]:
        """As `Segmenter.decode_points`: SAM's candidate with the highest predicted IoU."""
        image = pairs[:, 1].to(self.device)
        maps = {k: features.maps[k][image] for k in DECODER_MAPS if k in features.maps}
        prompts = self.sam.point_prompts(points * (self.sam.side / self.side), labels=labels)
        logits, ious = self.sam.candidates(maps, prompts, several=True)
        rows, best = torch.arange(len(ious), device=ious.device), ious.argmax(dim=1)
        return logits[rows, best], ious[rows, best]


def _decode(
    encoder: Any, decoder: Any, maps: Maps, prompts: Tensor, fine: list[Tensor] | None, several: bool
) -> tuple[Tensor, Tensor]:
    embedding = maps["sam"]
    dense = encoder.no_mask_embed.weight.view(1, -1, 1, 1).expand_as(embedding)
    logits, ious, _, _ = decoder(
        image_embeddings=embedding, image_pe=encoder.get_dense_pe(), sparse_prompt_embeddings=prompts,
        dense_prompt_embeddings=dense, multimask_output=several, repeat_image=False, high_res_features=fine,
    )
    return logits.float(), ious
