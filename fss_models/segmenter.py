"""The contract of a method. Training, serving and labelling are written against this class alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fss_models.augmentation import Augmentation
from fss_models.clip import Clip, Features, Images, Memory, Prediction, Prompt, PromptBatch, PromptKind
from fss_models.errors import FssError
from fss_models.preprocess import Mode, Preprocessor
from fss_models.presets import PRESETS
from fss_models.prompts import collate
from fss_models.state_dict import check_state


class Segmenter(nn.Module, ABC):
    """A few-shot segmentation method.

    `encode` -> `memorise` -> `segment` is the only path: one support set against a million images, one image
    against a hundred classes, and a batch in which every query has its own supports are the same three calls,
    and nothing is encoded twice. No loop over batch or frames where a tensor dimension can do it.
    """

    #: the name in the registry, set by `@register_method`
    method: ClassVar[str] = ""
    #: whether `losses` has anything to minimise
    trains: ClassVar[bool] = True
    #: the presets it can be built at
    presets: ClassVar[tuple[str, ...]] = tuple(PRESETS)
    #: the marks a reference may have
    prompt_kinds: ClassVar[frozenset[PromptKind]] = frozenset(PromptKind) - {PromptKind.PAD}

    #: whether logits are stretched to an image corner to corner, or (the usual) pixel area to pixel area
    corners_aligned: ClassVar[bool] = False

    def __init__(self, *, preset: str, preprocessor: Preprocessor, config: Any) -> None:
        super().__init__()
        self.preset, self.preprocessor, self.config = preset, preprocessor, config
        self.seed = 0  # what values that come from no file were drawn from

    @property
    def side(self) -> int:
        """R: the square side in pixels at which images, prompts and target masks are given."""
        return self.preprocessor.side

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def untrained(self) -> bool:
        """Whether parts that need training hold random values (a preset without pretrained weights)."""
        return False

    @property
    def keeps_random_parts(self) -> bool:
        """Whether training leaves random values alone that ought to be pretrained: no result is worth much then."""
        return False

    def frozen_weights(self) -> dict[str, str]:
        """Pretrained weights this model was built from: name -> sha256."""
        return {}

    def prepare(self, images: Sequence[np.ndarray], mode: Mode | None = None) -> Images:
        """[H, W, 3] uint8 arrays of any sizes -> `Images` on the CPU."""
        return self.preprocessor(images, mode)

    @classmethod
    def check_kind(cls, kind: PromptKind, where: str = "") -> None:
        """Raises `FssError` for a kind of prompt that the method cannot read."""
        if kind not in cls.prompt_kinds:
            known = ", ".join(sorted(k.name.lower() for k in cls.prompt_kinds))
            raise FssError(f"method {cls.method!r} reads no {kind.name.lower()} marks", where=where,
                           mend=f"it reads: {known}")

    def collate(self, sets: Sequence[Sequence[Prompt]], sizes: Tensor, image: Tensor | None = None) -> PromptBatch:
        """Prompts in pixels of their images (`prompts.collate`), brought to the square as this method wants them.

        Raises `FssError` for a mask that is not of its image's size, and a kind of prompt the method cannot read.
        """
        for prompt in (p for one in sets for p in one):
            self.check_kind(prompt.kind)
        return collate(sets, sizes, self.side, image, self.preprocessor.mask)

    @classmethod
    def augmentation(cls, side: int, *, scale: tuple[float, float]) -> Augmentation | None:
        """The augmentation of the method's published training, to `side` pixels; None where it publishes none.

        `scale` is the range of the factors by which photos are resized.
        """
        return None

    @abstractmethod
    def encode(self, images: Images) -> Features:
        """Frozen and adapted encoders, once an image, batched."""

    def frozen_part(self) -> Sequence[nn.Module]:
        """The modules that `encode_frozen` runs, none of them trained; empty where there is nothing worth keeping.

        Their values and the preprocessing decide what `encode_frozen` gives, so that it can be kept between epochs,
        runs and methods.
        """
        return ()

    def encode_frozen(self, images: Images) -> Features:
        """The part of `encode` that no training changes. Raises `FssError` where `frozen_part` is empty."""
        raise FssError(f"method {self.method!r} at {self.preset!r} has no frozen features to keep",
                       mend="set train.features=off")

    def finish(self, frozen: Features) -> Features:
        """`encode`'s result from `encode_frozen`'s."""
        return frozen

    def clip_features(self, clip: Clip) -> Features:
        """Features of a clip's references, then targets: what `losses` begins with."""
        return self.encode(clip.images) if clip.frozen is None else self.finish(clip.frozen.to(self.device))

    @abstractmethod
    def memorise(self, features: Features, prompts: PromptBatch) -> Memory:
        """S support sets at once: all that depends on no query. `prompts.image` indexes `features`."""

    @abstractmethod
    def segment(self, memory: Memory, features: Features, pairs: Tensor) -> Prediction:
        """Any P pairs in one batch. `pairs` [P, 2] int64: (row of `memory`, row of `features`)."""

    def losses(self, clip: Clip) -> dict[str, Tensor]:
        """Named scalar losses, already weighted: their sum is minimised. Raises `FssError` if nothing trains."""
        raise FssError(f"method {self.method!r} has nothing to train", mend="list it without a train section")

    def set_trainable(self) -> None:
        """Set `requires_grad` to what this method trains. The default freezes everything."""
        self.requires_grad_(False)

    def trainable_state(self) -> dict[str, Tensor]:
        """Only what was trained, on the CPU, by parameter and buffer name."""
        names = self.trainable_names()
        return {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items() if k in names}

    def trainable_names(self) -> set[str]:
        """Names of the tensors that `trainable_state` holds."""
        return {n for n, p in self.named_parameters() if p.requires_grad}

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        """Load what `trainable_state` gave. Raises `FssError` naming the first missing, unknown or misshapen key."""
        names = self.trainable_names()
        check_state(state, {k: v for k, v in self.state_dict().items() if k in names}, subject="checkpoint",
                    hint=f"is it a {self.method}/{self.preset} checkpoint?")
        self.load_state_dict(state, strict=False)
