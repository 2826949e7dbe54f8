"""SAM 3 as a few-shot method, without training: "Few-Shot Semantic Segmentation Meets SAM3" (arXiv 2604.05433).

SAM 3's detector finds all instances of a concept in one picture, prompted by a phrase and by boxes in that same
picture. Canvas mode pastes supports and query into one picture; token mode takes the prompt tokens of a support picture
over to other pictures.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fss_models.clip import Features, Images, Memory, Prediction, Prompt, PromptBatch, PromptKind
from fss_models.errors import FssError
from fss_models.methods.sam3.boxes import mask_boxes
from fss_models.methods.sam3.build import Sam3Parts, build_parts
from fss_models.methods.sam3.config import Sam3Config
from fss_models.methods.sam3.detector import LEVELS, Detections
from fss_models.methods.sam3.instances import FoundObjects, as_prediction, read_objects
from fss_models.methods.sam3.layout import FIVE, QUERY, CanvasLayout, layouts_of, place_boxes
from fss_models.methods.sam3.preprocess import CanvasPreprocessor
from fss_models.methods.sam3.words import Tokenizer, TokenizerFile, find_tokenizer
from fss_models.preprocess import SYMMETRIC, Preprocessor
from fss_models.registry import register_method
from fss_models.segmenter import Negatives, Segmenter
from fss_models.weight_files import file_sha256

LOOK = 32  # side of the small picture of a photo's colours, by which calibrators compare photos in canvas mode
BOX_START = 2  # label of a box's first corner in a `PromptBatch`


@register_method("sam3", config=Sam3Config)
class Sam3(Segmenter):
    """Frozen SAM 3, prompted by the box of a support's object, and by the class name where `class_names` says so."""

    trains = False
    classes_held_out = False
    instance_sources = frozenset({"model", "pieces"})
    presets = ("debug", "sam3")
    prompt_kinds = frozenset({PromptKind.MASK, PromptKind.BOX})
    config: Sam3Config
    cells: Tensor
    visual: Tensor
    visual_valid: Tensor

    def __init__(self, *, preset: str, config: Sam3Config, weights: str | None = None, parts: Sam3Parts | None = None,
                 layouts: tuple[CanvasLayout, ...] = (), tokenizer: Tokenizer | None = None) -> None:
        """`parts` and `tokenizer` replace those that preset and weights would give, `layouts` those of the settings."""
        parts = parts or build_parts(preset, weights)
        layouts = layouts or layouts_of(config, parts.side)
        mean, std = SYMMETRIC
        super().__init__(preset=preset, config=config, preprocessor=CanvasPreprocessor(
            side=parts.side, layouts=layouts) if config.mode == "canvas" else
            Preprocessor(side=parts.side, mean=mean, std=std))
        self.layouts, self.detector, self.vocabulary = layouts, parts.detector, parts.vocabulary
        self._checkpoint, self._frozen = parts.checkpoint, {}
        if config.mode == "token" and config.exemplar == "point" and self.detector.points is None:
            logging.getLogger(__name__).warning("these weights have no point prompts: supports are given as boxes")
        if config.class_names and tokenizer is None:
            place = find_tokenizer(config.tokenizer_weights, weights or "")
            tokenizer = TokenizerFile(place)
            self._frozen = {"tokenizer": file_sha256(place)}
        self._tokenizer = tokenizer
        self._keep_constants()

    def _keep_constants(self) -> None:
        """The cell maps, and the tokens of the word that stands for no name; without names no other text is needed."""
        ids, valid = self.vocabulary.encode([""], None)
        with torch.no_grad():
            tokens = self.detector.text(ids, valid)
        for name, value in (("visual", tokens), ("visual_valid", valid),
                            ("cells", torch.stack([one.cell_map() for one in self.layouts]))):
            self.register_buffer(name, value, persistent=False)
        if not self.config.class_names:
            self.detector.drop_text_encoder()

    @classmethod
    def reads_names(cls, config: Any) -> bool:
        """Whether the class name is part of the prompt, as `class_names` says."""
        return bool(config.class_names)

    @classmethod
    def negatives(cls, config: Sam3Config) -> Negatives:
        """Negative examples become negative boxes, if `negative_boxes` says so."""
        return "marks" if config.negative_boxes else "none"

    @property
    def untrained(self) -> bool:
        """Whether SAM 3 holds random values."""
        return not self._checkpoint

    def frozen_weights(self) -> dict[str, str]:
        """The tokenizer, where names are read; the caller records the weight file that it gave."""
        return self._frozen

    @classmethod
    def image_encodings(cls, config: Any, *, photos: int, classes: int, supports: int) -> int:
        """Canvas mode encodes a picture for each photo and class, token mode one for each photo and support."""
        return photos * classes if config.mode == "canvas" else photos + supports

    def train(self, mode: bool = True) -> Sam3:
        """Stay in evaluation mode: nothing here is trained."""
        return super().train(False)

    def collate(self, sets: Sequence[Sequence[Prompt]], sizes: Tensor, image: Tensor | None = None,
                names: Sequence[str] = ()) -> PromptBatch:
        """Gather prompts; a mask gets boxes too, made at the photo's own size, two points each; an empty one gets none.

        Raises `FssError` for points and scribbles.
        """
        batch = super().collate(sets, sizes, image, names)
        where = batch.image
        ordered = [sorted(one, key=lambda p: p.negative) for one in sets]  # as in the batch
        boxes = [[self._boxes(p, sizes[where[i, j]]) for j, p in enumerate(one)] for i, one in enumerate(ordered)]
        width = max(1, *(len(b) for one in boxes for b in one))
        points = torch.zeros(*batch.kind.shape, 2 * width, 2)
        labels = torch.full((*batch.kind.shape, 2 * width), -1, dtype=torch.int32)
        for i, one in enumerate(boxes):
            for j, found in enumerate(one):
                points[i, j, :2 * len(found)] = (found * self.side).view(-1, 2).float()
                labels[i, j, :2 * len(found)] = torch.tensor([BOX_START, BOX_START + 1] * len(found))
        return replace(batch, points=points, labels=labels)

    def _boxes(self, prompt: Prompt, size: Tensor) -> Tensor:
        """Boxes [n, 4] x0 y0 x1 y1 of one support, as shares of its photo in double precision."""
        scale = size.flip(0).repeat(2).double()
        if prompt.mask is not None and not bool(prompt.mask.any()):
            return torch.zeros(0, 4)  # evaluation has references whose class vanished; a person's mask is never empty
        if prompt.mask is not None:
            return torch.from_numpy(mask_boxes(prompt.mask.numpy(), self.config.boxes)) / scale
        assert prompt.box is not None
        return prompt.box.double()[None] / scale

    def encode(self, images: Images) -> Features:
        """Canvas mode: the photo in all cells ("packed" [N, 3 * layouts, R, R] uint8) and its colours ("look"
        [N, 3, 32, 32]), since SAM 3 sees only whole canvases. Token mode: SAM 3's maps fine, middle, coarse.
        """
        pixels = images.pixels.to(self.device)
        if self.config.mode == "token":
            return Features(maps=self.detector.vision(pixels, self.config.precision), sizes=images.sizes)
        rows, columns = self.layouts[0].query.part
        look = F.adaptive_avg_pool2d(pixels[:, :3, rows, columns], LOOK)
        packed = ((pixels * 0.5 + 0.5) * 255).round().clamp(0, 255).byte()
        return Features(maps={"packed": packed, "look": look}, sizes=images.sizes)

    def memorise(self, features: Features, prompts: PromptBatch) -> Memory:
        """Canvas mode: canvas [S, 3, R, R] uint8 without the query, its layout [S], boxes [S, n, 4] (cx cy w h, shares
        of the canvas) and which are valid [S, n], text [S, 32, C] and text_valid [S, 32]. Token mode: tokens [S, T, C]
        and valid [S, T]. With `negative_boxes` canvas mode has boxes_positive [S, n] too.

        Raises `FssError` for prompts that are not of `collate`, and for several supports where the layout is `pair`.
        """
        boxes, valid = self._prompt_boxes(prompts)
        text, text_valid = self._text(prompts)
        if self.config.mode == "token":
            tensors = self._tokens(features, prompts, boxes, valid, text, text_valid)
        else:
            tensors = self._canvas(features, prompts, boxes, valid) | {"text": text, "text_valid": text_valid}
        return Memory(tensors=tensors, counts=prompts.counts)

    def segment(self, memory: Memory, features: Features, pairs: Tensor) -> Prediction:
        """Logits of the query's cell (with the layout `auto` stretched to R x R; in token mode SAM 3's own map).

        The score is that of the best instance with a pixel in the photo. Instances are without repeats.
        """
        run = self._detect_tokens if self.config.mode == "token" else self._detect_canvases
        found = [one for part in pairs.split(self.config.chunk)
                 for one in self._objects(run(memory, features, part), self._layouts_at(memory, part))]
        return as_prediction(found, self.config.suppress)

    def canvases(self, memory: Memory, features: Features, pairs: Tensor) -> Tensor:
        """The pictures [P, 3, R, R] uint8 that SAM 3 sees of `pairs` in canvas mode."""
        own = memory.tensors["layout"][pairs[:, 0]]
        query = (self.cells[own] == QUERY)[:, None]
        return torch.where(query, self._packed(features)[pairs[:, 1], own], memory.tensors["canvas"][pairs[:, 0]])

    def _packed(self, features: Features) -> Tensor:
        return features.maps["packed"].unflatten(1, (len(self.layouts), 3))

    def _detect_canvases(self, memory: Memory, features: Features, pairs: Tensor) -> Detections:
        pixels = (self.canvases(memory, features, pairs).float() / 255 - 0.5) / 0.5
        maps, own = self.detector.vision(pixels, self.config.precision), memory.take(pairs[:, 0]).tensors
        tokens, valid = self.detector.geometry(maps["coarse"], own["boxes"], own["boxes_valid"],
                                               positive=own.get("boxes_positive"))
        return self.detector.detect(maps, torch.cat([own["text"], tokens], dim=1),
                                    torch.cat([own["text_valid"], valid], dim=1))

    def _detect_tokens(self, memory: Memory, features: Features, pairs: Tensor) -> Detections:
        own = memory.take(pairs[:, 0]).tensors
        return self.detector.detect({name: features.maps[name][pairs[:, 1]] for name in LEVELS}, own["tokens"],
                                    own["valid"])

    def _layouts_at(self, memory: Memory, pairs: Tensor) -> list[CanvasLayout | None]:
        if self.config.mode == "token":
            return [None] * len(pairs)
        return [self.layouts[i] for i in memory.tensors["layout"][pairs[:, 0]].tolist()]

    def _objects(self, seen: Detections, layouts: Sequence[CanvasLayout | None]) -> list[FoundObjects]:
        square = len(self.layouts) > 1
        return [read_objects(scores, masks, self.config.threshold, layout, square)
                for scores, masks, layout in zip(seen.scores, seen.masks, layouts, strict=True)]

    def _prompt_boxes(self, prompts: PromptBatch) -> tuple[Tensor, Tensor]:
        """Boxes [S, K, n, 4] x0 y0 x1 y1 as shares of their photos, and whether they are boxes [S, K, n]."""
        if prompts.points.shape[2] % 2 == 0:
            boxes = prompts.points.unflatten(2, (-1, 2)).flatten(3) / self.side
            return boxes, prompts.labels[..., ::2] == BOX_START
        raise FssError("method 'sam3' needs the boxes of masks", hint="gather prompts with the model's own `collate`")

    def _text(self, prompts: PromptBatch) -> tuple[Tensor, Tensor]:
        """Tokens [S, 32, C] and validity [S, 32] of each set's name, of "visual" where there is none."""
        sets = len(prompts.kind)
        names = list(prompts.names) or [""] * sets
        if not self.config.class_names or not any(names):
            return self.visual.expand(sets, -1, -1), self.visual_valid.expand(sets, -1)
        known = list(dict.fromkeys(names))
        ids, valid = (t.to(self.device) for t in self.vocabulary.encode(known, self._tokenizer))
        rows = torch.tensor([known.index(n) for n in names], device=self.device)
        return self.detector.text(ids, valid)[rows], valid[rows]

    def _tokens(self, features: Features, prompts: PromptBatch, boxes: Tensor, valid: Tensor, text: Tensor,
                text_valid: Tensor) -> dict[str, Tensor]:
        """The prompt tokens of each set: text, then each support's boxes and CLS token, encoded on its own photo."""
        coarse = features.maps["coarse"][prompts.image.flatten()]
        centred = torch.cat([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], dim=-1)
        exemplar = "box" if self.detector.points is None else self.config.exemplar
        tokens, present = self.detector.geometry(coarse, centred.flatten(0, 1), valid.flatten(0, 1), exemplar,
                                                 self._positive(prompts, valid).flatten(0, 1))
        real = (prompts.kind != PromptKind.PAD)[..., None]
        present = present.unflatten(0, prompts.kind.shape) & real
        return {"tokens": torch.cat([text, tokens.unflatten(0, prompts.kind.shape).flatten(1, 2)], dim=1),
                "valid": torch.cat([text_valid, present.flatten(1)], dim=1)}

    def _canvas(self, features: Features, prompts: PromptBatch, boxes: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """The supports' cells of each set's canvas, and the boxes in them."""
        layout = self._choose_layouts(prompts.counts)
        used = min(prompts.kind.shape[1], FIVE)
        packed, cells = self._packed(features), self.cells[layout]
        canvas = packed.new_zeros(len(layout), *packed.shape[2:])
        for i in range(used):
            here = (cells == i) & (prompts.kind[:, i] != PromptKind.PAD)[:, None, None]
            canvas = torch.where(here[:, None], packed[prompts.image[:, i], layout], canvas)
        places = torch.tensor([[*one.supports, *[one.query] * FIVE][:used] for one in self.layouts])
        placed = place_boxes(boxes[:, :used], places.to(layout.device)[layout], self.side)
        signs = {"boxes_positive": self._positive(prompts, valid)[:, :used].flatten(1)}
        return {"canvas": canvas, "layout": layout, "boxes": placed.flatten(1, 2),
                "boxes_valid": valid[:, :used].flatten(1), **(signs if self.config.negative_boxes else {})}

    def _positive(self, prompts: PromptBatch, valid: Tensor) -> Tensor:
        """Which boxes [S, K, n], as `valid` has them, are not of negative examples."""
        return ~prompts.negatives.to(valid.device)[..., None].expand_as(valid)

    def _choose_layouts(self, counts: Tensor) -> Tensor:
        """The number of each set's layout [S]."""
        most = int(counts.max())
        if most > FIVE:
            warnings.warn(f"sam3 uses the first {FIVE} of {most} supports: a canvas has no room for more", stacklevel=4)
        if most > 1 and self.config.layout == "pair":
            raise FssError(f"the layout `pair` has room for one support, not {most}",
                           hint="set layout: auto or five")
        return (counts > 1).long() if self.config.layout == "auto" else torch.zeros_like(counts)
