"""The contract of a method; training, serving and labelling use this class alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fss_models.augmentation import Augmentation
from fss_models.clip import Clip, Features, Images, Memory, Prediction, Prompt, PromptBatch, PromptKind
from fss_models.errors import FssError
from fss_models.optimisation import ParameterGroup
from fss_models.preprocess import Mode, Preprocessor
from fss_models.presets import PRESETS
from fss_models.prompts import collate
from fss_models.state_dict import check_state

#: the negative examples that a method uses: none, photos without the class, or marks of any part of a photo too
Negatives = Literal["none", "photos", "marks"]


class Segmenter(nn.Module, ABC):
    """A few-shot segmentation method.

    `encode` -> `memorise` -> `segment` is the only path: one support set against a million images, one image
    against a hundred classes, and a batch in which every query has its own supports are the same three calls,
    and nothing is encoded twice. Methods use tensor dimensions instead of loops over batches or frames.
    """

    #: the name in the registry, set by `@register_method`
    method: ClassVar[str] = ""
    #: whether the method can be trained
    trains: ClassVar[bool] = True
    #: the presets that the method can be built at
    presets: ClassVar[tuple[str, ...]] = tuple(PRESETS)
    #: the kinds of mark that a reference may have
    prompt_kinds: ClassVar[frozenset[PromptKind]] = frozenset(PromptKind) - {PromptKind.PAD}

    #: whether the method builds on a base learner, which a sweep trains first (`load_base_learner`)
    on_base_learner: ClassVar[bool] = False

    #: whether training can leave out the classes of a test fold; not so where nobody knows what a model was trained on
    classes_held_out: ClassVar[bool] = True
    #: whether logits are resized with aligned corners, instead of the usual aligned pixel areas
    corners_aligned: ClassVar[bool] = False

    #: where instances may come from (`fss_models.instances`): "model" if `segment` returns them, "prompts" if
    #: `decode_points` is there
    instance_sources: ClassVar[frozenset[str]] = frozenset({"pieces"})

    def __init__(self, *, preset: str, preprocessor: Preprocessor, config: Any) -> None:
        super().__init__()
        self.preset, self.preprocessor, self.config = preset, preprocessor, config
        self.seed = 0  # seed of all values that come from no file

    @property
    def side(self) -> int:
        """R, the side in pixels of the square to which images, prompts and target masks are resized."""
        return self.preprocessor.side

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device

    @classmethod
    def reads_names(cls, config: Any) -> bool:
        """Whether the class name is part of the prompt with this configuration."""
        return False

    @classmethod
    def check_phrase(cls, phrase: str, config: Any, where: str = "") -> None:
        """Raises `FssError` for a phrase that was written as a prompt, where the method reads no names."""
        if phrase and not cls.reads_names(config):
            known = hasattr(config, "class_names")
            raise FssError(f"method {cls.method!r} reads no `prompt`", where=where,
                           hint="build it with config class_names: true" if known else "leave `prompt` out")

    @classmethod
    def negatives(cls, config: Any) -> Negatives:
        """The negative examples (`Prompt.negative`) that the method uses with this configuration."""
        return "none"

    @classmethod
    def check_negative(cls, config: Any, *, whole: bool, where: str = "") -> None:
        """Raises `FssError` for a negative example that the method cannot use; `whole`: it marks all of its photo."""
        used = cls.negatives(config)
        if used == "none":
            known = hasattr(config, "negative_boxes")
            raise FssError(f"method {cls.method!r} uses no negative examples", where=where,
                           hint="build it with config negative_boxes: true" if known else "leave it out")
        if used == "photos" and not whole:
            raise FssError(f"method {cls.method!r} uses negative photos, but no marks on them", where=where,
                           hint="leave the mark out if nothing in the photo is of the class")

    @property
    def untrained(self) -> bool:
        """Whether parts that need training hold random values (a preset without pretrained weights)."""
        return False

    @property
    def keeps_random_parts(self) -> bool:
        """Whether values that ought to be pretrained are random and stay so in training; results are then poor."""
        return False

    def frozen_weights(self) -> dict[str, str]:
        """Pretrained weights this model was built from: name -> sha256."""
        return {}

    def prepare(self, images: Sequence[np.ndarray], mode: Mode | None = None) -> Images:
        """Preprocess [H, W, 3] uint8 arrays of any sizes to `Images` on the CPU."""
        return self.preprocessor(images, mode)

    @classmethod
    def check_kind(cls, kind: PromptKind, where: str = "") -> None:
        """Raises `FssError` for a kind of prompt that the method cannot read."""
        if kind not in cls.prompt_kinds:
            known = ", ".join(sorted(k.name.lower() for k in cls.prompt_kinds))
            raise FssError(f"method {cls.method!r} reads no {kind.name.lower()} marks", where=where,
                           hint=f"it reads: {known}")

    def collate(self, sets: Sequence[Sequence[Prompt]], sizes: Tensor, image: Tensor | None = None,
                names: Sequence[str] = ()) -> PromptBatch:
        """Gather prompts, given in pixels of their images, and resize them to the square as the method needs them.

        `names`: the class name of each set, for methods that read names. Raises `FssError` for a mask that is not of
        its image's size, and a kind of prompt the method cannot read.
        """
        for prompt in (p for one in sets for p in one):
            self.check_kind(prompt.kind)
            if prompt.negative:
                self.check_negative(self.config, whole=prompt.mask is not None and bool(prompt.mask.all()))
        return replace(collate(sets, sizes, self.side, image, self.preprocessor.mask), names=tuple(names))

    @classmethod
    def image_encodings(cls, config: Any, *, photos: int, classes: int, supports: int) -> int:
        """How often labelling `photos` runs the image encoder; `supports` are those of all classes together.

        By default once for each photo and each support.
        """
        return photos + supports

    @classmethod
    def augmentation(cls, side: int, *, scale: tuple[float, float]) -> Augmentation | None:
        """The augmentation of the method's published training, to `side` pixels; None where it publishes none.

        `scale` is the range of the factors by which photos are resized.
        """
        return None

    @abstractmethod
    def encode(self, images: Images) -> Features:
        """Run the frozen and adapted encoders, once for each image."""

    def encode_supports(self, images: Images) -> Features:
        """Encode images of which only `memorise` reads the features; by default as `encode` does.

        A method overrides it where a support needs less than a query, which has to be segmented.
        """
        return self.encode(images)

    @property
    def supports_apart(self) -> bool:
        """Whether that costs so much less that a photo which is support and query is better encoded for each."""
        return False

    def frozen_part(self) -> Sequence[nn.Module]:
        """The modules that `encode_frozen` runs, none of them trained; empty if its result is not worth storing.

        Their values and the preprocessing determine that result, so it can be stored between epochs, runs and methods.
        """
        return ()

    def encode_frozen(self, images: Images) -> Features:
        """Run the part of `encode` that training does not change. Raises `FssError` if `frozen_part` is empty."""
        raise FssError(f"method {self.method!r} at {self.preset!r} has no frozen features to keep",
                       hint="set train.features=off")

    def finish(self, frozen: Features) -> Features:
        """Turn the result of `encode_frozen` into that of `encode`."""
        return frozen

    def clip_features(self, clip: Clip) -> Features:
        """Features of a clip's references, then targets, from which `losses` starts."""
        return self.encode(clip.images) if clip.frozen is None else self.finish(clip.frozen.to(self.device))

    @abstractmethod
    def memorise(self, features: Features, prompts: PromptBatch) -> Memory:
        """Compute all that depends on no query, for S support sets at once. `prompts.image` indexes `features`."""

    @abstractmethod
    def segment(self, memory: Memory, features: Features, pairs: Tensor) -> Prediction:
        """Predict any P pairs in one batch. `pairs` [P, 2] int64: (row of `memory`, row of `features`)."""

    @property
    def mask_side(self) -> int:
        """The side of the square masks that `decode_points` returns."""
        return self.side // 4

    def decode_points(self, memory: Memory, features: Features, pairs: Tensor, points: Tensor,
                      labels: Tensor) -> tuple[Tensor, Tensor]:
        """Segment one object for each of E rows of points: logits [E, h, w] and predicted IoU [E], h = w = `mask_side`.

        pairs [E, 2] as in `segment`; points [E, n, 2] in pixels of the square; labels [E, n]: 1 on the object, else 0.
        Raises `FssError` if the method has no decoder for points.
        """
        raise FssError(f"method {self.method!r} has no mask decoder for points")

    def losses(self, clip: Clip) -> dict[str, Tensor]:
        """Named scalar losses, already weighted: their sum is minimised. Raises `FssError` if nothing trains."""
        raise FssError(f"method {self.method!r} has nothing to train", hint="list it without a train section")

    def load_base_learner(self, state: Mapping[str, Tensor], classes: Mapping[str, int]) -> None:
        """Take over a trained base learner: its tensors, and the number of each class by name.

        Raises `FssError` for tensors that do not fit, and for a method that builds on none.
        """
        raise FssError(f"method {self.method!r} builds on no base learner")

    def set_trainable(self) -> None:
        """Set `requires_grad` to what this method trains. The default freezes everything."""
        self.requires_grad_(False)

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """Trained parameters that have an optimiser, rate or weight decay of their own; the recipe's hold for the rest.
        """
        return ()

    def trainable_state(self) -> dict[str, Tensor]:
        """The trained tensors alone, on the CPU, by parameter and buffer name."""
        names = self.trainable_names()
        return {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items() if k in names}

    def trainable_names(self) -> set[str]:
        """Names of the tensors that `trainable_state` holds."""
        return {n for n, p in self.named_parameters() if p.requires_grad}

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        """Load a result of `trainable_state`. Raises `FssError` naming the first missing, unknown or misshapen key."""
        names = self.trainable_names()
        check_state(state, {k: v for k, v in self.state_dict().items() if k in names}, subject="checkpoint",
                    hint=f"is it a {self.method}/{self.preset} checkpoint?")
        self.load_state_dict(state, strict=False)
