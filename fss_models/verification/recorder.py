"""Recording the inputs and outputs of a model's modules, and building clips from a golden case's tensors."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from fss_models.clip import Clip, Images, PromptBatch, PromptKind


class Recorder:
    """Keeps the inputs and outputs of every module below `roots`, call by call, while the `with` block lasts.

    given, got: dotted name, which begins with the root's -> one entry a call (a tuple of inputs; the output)
    """

    def __init__(self, **roots: nn.Module) -> None:
        self.given: dict[str, list[tuple[Any, ...]]] = {}
        self.got: dict[str, list[Any]] = {}
        self._handles = [module.register_forward_hook(self._hook(f"{root}.{name}" if name else root))
                         for root, top in roots.items() for name, module in top.named_modules()]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None,
                 _trace: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str) -> Callable[..., None]:
        def keep(_module: nn.Module, given: tuple[Any, ...], got: Any) -> None:
            self.given.setdefault(name, []).append(given)
            self.got.setdefault(name, []).append(got)

        return keep


def masked_clip(*, support: Tensor, masks: Tensor, query: Tensor, truth: Tensor, ignore: Tensor | None = None) -> Clip:
    """B clips of K references and one target: images [B, K, 3, S, S] and [B, 3, S, S], already normalised.

    masks [B, K, S, S] and truth [B, S, S] in {0, 1}; ignore [B, S, S] bool, by default nothing is void.
    """
    b, k, side, _ = masks.shape
    void = torch.zeros(b, side, side, dtype=torch.bool) if ignore is None else ignore
    prompts = PromptBatch(
        image=torch.arange(b * k).view(b, k), kind=torch.full((b, k), int(PromptKind.MASK)), masks=masks.float(),
        points=torch.zeros(b, k, 1, 2), labels=torch.full((b, k, 1), -1, dtype=torch.int32))
    return Clip(references=_images(support.flatten(0, 1)), targets=_images(query), prompts=prompts,
                target_masks=truth[:, None].float(), ignore=void[:, None])


def _images(pixels: Tensor) -> Images:
    return Images(pixels=pixels, sizes=torch.tensor([list(pixels.shape[-2:])] * len(pixels)))
