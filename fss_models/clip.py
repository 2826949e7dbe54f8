"""The tensors that travel between the parts of a method. Each field's shape is stated here and nowhere else.

Letters: B clips, K references, J targets, N images, S support sets, P (support set, image) pairs,
R the square side a method works at, C channels, h x w a method's own mask size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor


class PromptKind(IntEnum):
    """The kind of mark that shows the object in a reference. PAD fills support sets with fewer than K references."""

    PAD = -1
    MASK = 0
    POINTS = 1
    BOX = 2
    SCRIBBLE = 3


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One reference's mark, in pixels of the original image (x right, y down).

    mask   [H, W] bool           kind MASK
    points [P, 2] float x, y     kinds POINTS, SCRIBBLE; `labels` [P]: 1 on the object, 0 off it
    box    [4] float x0 y0 x1 y1 kind BOX
    negative: the mark shows what the class is not, and nothing is known of the rest of the photo; all points are off
    the object. A photo without the class is a negative mask of all its pixels.
    """

    kind: PromptKind
    mask: Tensor | None = None
    points: Tensor | None = None
    labels: Tensor | None = None
    box: Tensor | None = None
    negative: bool = False


@dataclass(frozen=True, kw_only=True)
class _Tensors:
    """Moves, indexes and flattens a dataclass of tensors; `None` fields stay `None`."""

    def _each(self) -> Iterator[tuple[str, Any]]:
        return ((f.name, getattr(self, f.name)) for f in fields(self))

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Any:
        """A copy on `device`, its floating tensors converted to `dtype` if one is given.

        What goes to a GPU is copied from pinned memory; the GPU's later work waits for it, the caller does not.
        """
        return replace(self, **{k: _move(v, device, dtype) for k, v in self._each()})


def _move(value: Any, device: torch.device | str, dtype: torch.dtype | None) -> Any:
    if isinstance(value, Tensor):
        to_gpu = value.device.type == "cpu" and torch.device(device).type == "cuda"
        return (value.pin_memory() if to_gpu else value).to(
            device=device, dtype=dtype if dtype and value.is_floating_point() else None, non_blocking=to_gpu)
    if isinstance(value, _Tensors):
        return value.to(device, dtype)
    if isinstance(value, dict):
        return {k: _move(v, device, dtype) for k, v in value.items()}
    return value


@dataclass(frozen=True, kw_only=True)
class Images(_Tensors):
    """Preprocessed images: what `Segmenter.prepare` returns and `encode` takes.

    pixels [N, 3, R, R] float, normalised as the method wants them; a method may want several pictures of a photo, one
           behind the other in the second dimension
    sizes  [N, 2] int64, the original (height, width)
    """

    pixels: Tensor
    sizes: Tensor

    def __len__(self) -> int:
        return int(self.pixels.shape[0])

    def rows(self, first: int, end: int) -> Images:
        """The images from `first` to before `end`."""
        return Images(pixels=self.pixels[first:end], sizes=self.sizes[first:end])

    @staticmethod
    def join(parts: Sequence[Images]) -> Images:
        """Images of one preparation in one batch."""
        return Images(pixels=torch.cat([p.pixels for p in parts]), sizes=torch.cat([p.sizes for p in parts]))


@dataclass(frozen=True, kw_only=True)
class Features(_Tensors):
    """Feature maps that `encode` computes once an image. `maps[name]` is [N, C, h, w]; each method names its own."""

    maps: dict[str, Tensor]
    sizes: Tensor  # [N, 2] int64, the original (height, width)

    def __len__(self) -> int:
        return int(self.sizes.shape[0])

    def take(self, index: Tensor) -> Features:
        """The rows of the images `index` [M], in that order; an image may be taken several times."""
        return Features(maps={k: v[index] for k, v in self.maps.items()}, sizes=self.sizes[index])

    @staticmethod
    def stack(parts: Sequence[Features]) -> Features:
        """Join features of one method; where dimension 1 of a map is shorter it is padded with zeros."""
        return Features(maps={k: _pad_cat([p.maps[k] for p in parts]) for k in parts[0].maps},
                        sizes=torch.cat([p.sizes for p in parts]))


@dataclass(frozen=True, kw_only=True)
class PromptBatch(_Tensors):
    """Prompts of S support sets with up to K references each, in pixels of the R x R square.

    image  [S, K] int64: the reference's row in the `Features` (0 where padded)
    kind   [S, K] int64: a `PromptKind`, PAD where the set has fewer references
    masks  [S, K, R, R] float in {0, 1}; zeros unless kind is MASK
    points [S, K, P, 2] float; a BOX is its two corners
    labels [S, K, P] int32: 1 on the object, 0 off it, 2 and 3 a box's corners, -1 padding
    names  the class name of each set, "" where it is not known; empty: of none. Only methods that read names use them
    negative [S, K] bool: the mark shows what the class is not; these come last in a set. None: no mark does
    """

    image: Tensor
    kind: Tensor
    masks: Tensor
    points: Tensor
    labels: Tensor
    names: tuple[str, ...] = ()
    negative: Tensor | None = None

    @property
    def counts(self) -> Tensor:
        """Number of references in each set, negative ones too, [S]."""
        return (self.kind != PromptKind.PAD).sum(dim=1)

    @property
    def negatives(self) -> Tensor:
        """Which references are negative, [S, K] bool."""
        return torch.zeros_like(self.kind, dtype=torch.bool) if self.negative is None else self.negative

    @property
    def shown(self) -> Tensor:
        """Which references show the object, [S, K] bool."""
        return (self.kind != PromptKind.PAD) & ~self.negatives


@dataclass(frozen=True, kw_only=True)
class Memory(_Tensors):
    """Everything that `memorise` computed from S support sets: tensors [S, ...] that can be saved, sent and stacked.

    counts [S] int64: references in each set; tensors with a K axis are padded with zeros beyond it.
    """

    tensors: dict[str, Tensor]
    counts: Tensor

    def __len__(self) -> int:
        return int(self.counts.shape[0])

    def take(self, index: Tensor) -> Memory:
        """The rows of the support sets `index` [M], in that order; a set may be taken several times."""
        return Memory(tensors={k: v[index] for k, v in self.tensors.items()}, counts=self.counts[index])

    @staticmethod
    def stack(memories: Sequence[Memory]) -> Memory:
        """Join support sets of one method; shorter K axes (dimension 1) are padded with zeros."""
        names = memories[0].tensors.keys()
        joined = {n: _pad_cat([m.tensors[n] for m in memories]) for n in names}
        return Memory(tensors=joined, counts=torch.cat([m.counts for m in memories]))


def _pad_cat(parts: Sequence[Tensor]) -> Tensor:
    if parts[0].dim() < 2 or len({p.shape[1] for p in parts}) == 1:
        return torch.cat(list(parts))
    width = max(p.shape[1] for p in parts)
    grown = [torch.cat([p, p.new_zeros(p.shape[0], width - p.shape[1], *p.shape[2:])], dim=1) for p in parts]
    return torch.cat(grown)


@dataclass(frozen=True, kw_only=True)
class Instances(_Tensors):
    """I objects, one mask each, of the pairs of a `Prediction`; a pair may have any number of them.

    pair   [I] int64: row of the prediction
    scores [I] float in [0, 1]; within a pair from high to low
    logits [I, h, w] float: positive on the object, as the model made them
    window [P, 4] int64: the part (top, left, bottom, right) of that map that is the photo of a pair
    """

    pair: Tensor
    scores: Tensor
    logits: Tensor
    window: Tensor

    def of_pair(self, row: int) -> Instances:
        """The instances of one pair alone, whose row is then 0."""
        own = self.pair == row
        return Instances(pair=self.pair[own] - row, scores=self.scores[own], logits=self.logits[own],
                         window=self.window[row:row + 1])


@dataclass(frozen=True, kw_only=True)
class Prediction(_Tensors):
    """P masks, at the method's own resolution.

    logits [P, h, w] float: positive on the object; the map covers the whole (square-resized) image
    scores [P] float in [0, 1]: the method's own estimate of the mask's quality
    instances       one mask for each object; None from methods that draw one mask a class
    """

    logits: Tensor
    scores: Tensor
    instances: Instances | None = None


@dataclass(frozen=True, kw_only=True)
class Clip(_Tensors):
    """B training clips of one class each: K prompted references, J targets. J = 1 is the usual episode.

    references   Images, N = B * K, clip by clip
    prompts      PromptBatch, S = B
    targets      Images, N = B * J, clip by clip
    target_masks [B, J, D, D] float in {0, 1}; may be empty. D is the preprocessor's `data_side`, usually R
    ignore       [B, J, D, D] bool: pixels that enter no loss (void, crowd)
    reference_masks, reference_ignore   the same for the references [B, K, D, D], needed by losses on references
    frozen       stored results of `Segmenter.encode_frozen` for references, then targets; then pixels may be empty
    """

    references: Images
    prompts: PromptBatch
    targets: Images
    target_masks: Tensor
    ignore: Tensor
    reference_masks: Tensor | None = None
    reference_ignore: Tensor | None = None
    frozen: Features | None = None
    class_names: tuple[str, ...] = field(default=())

    @property
    def images(self) -> Images:
        """References followed by targets, since encoding them in one batch is faster than in two."""
        return Images.join([self.references, self.targets])

    @property
    def shape(self) -> tuple[int, int, int]:
        """The numbers of clips, references and targets, (B, K, J)."""
        b, j = self.target_masks.shape[:2]
        return b, int(self.prompts.kind.shape[1]), j

    def split(self, parts: int) -> list[Clip]:
        """Split the clips into `parts` equal parts, in order. Raises `ValueError` if B is not a multiple of `parts`."""
        b, k, j = self.shape
        if b % parts:
            raise ValueError(f"{b} clips cannot be split into {parts} equal parts")
        return [self._rows(first, first + b // parts, k, j) for first in range(0, b, b // parts)]

    def _rows(self, first: int, end: int, k: int, j: int) -> Clip:
        cut = slice(first, end)
        kept: dict[str, Any] = {k: v if v is None else v[cut] for k, v in self.prompts._each()}
        prompts = replace(self.prompts, **kept)
        frozen = None
        if self.frozen is not None:
            of_targets = self.shape[0] * k
            rows = [*range(first * k, end * k), *range(of_targets + first * j, of_targets + end * j)]
            frozen = self.frozen.take(torch.tensor(rows, device=self.frozen.sizes.device))
        return replace(
            self, references=self.references.rows(first * k, end * k), targets=self.targets.rows(first * j, end * j),
            prompts=replace(prompts, image=(prompts.image - first * k).clamp(min=0)),  # padding points at row 0
            target_masks=self.target_masks[cut], ignore=self.ignore[cut], frozen=frozen,
            reference_masks=None if self.reference_masks is None else self.reference_masks[cut],
            reference_ignore=None if self.reference_ignore is None else self.reference_ignore[cut],
            class_names=self.class_names[cut])
