"""The losses of class-agnostic pretraining: an object is found from its prompt, and again from its memory.

Letters: E clips of V views, M = 4 masks of the decoder (token 0, then three candidates), q = R / 4. SAM 2's losses
(Ravi et al. 2024, section D.2.1): a pixel loss, dice, predicted IoU and object score; the best of the candidates
learns most, since a point or a first memory can mean several masks. The pixel loss is cross-entropy, not SAM 2's
focal loss: from random values, in steps of 8 clips, the focal loss tracked nothing after 400 steps (IoU below 6 %);
cross-entropy began to track within 100 (12 %).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fss_models.sam2_core.core import Maps, MemoryEntries, Sam2Core, take

OTHERS_WEIGHT = 0.2  # weight of all candidates' mean loss; the best candidate gets the rest
TRUNK = "image_encoder.trunk."


class PretrainPrompt(IntEnum):
    """Kind of prompt that marks a batch's references."""

    MASK = 0
    BOX = 1
    POINTS = 2


@dataclass(frozen=True, kw_only=True)
class PretrainClips:
    """E clips of V views each, the first of which is the reference.

    stages   the trunk's maps, finest first: four of [E * V, C, h, w], clip by clip
    masks    [E, V, R, R] float in {0, 1}: the clip's object in each view, empty where it is out of sight
    mark     kind of prompt of the references; points [E, P, 2] and labels [E, P] in pixels if it is not MASK
    """

    stages: list[Tensor]
    masks: Tensor
    mark: PretrainPrompt
    points: Tensor | None = None
    labels: Tensor | None = None

    def to(self, device: torch.device | str) -> PretrainClips:
        """A copy on `device`."""
        moved = {k: None if v is None else v.to(device) for k, v in (("points", self.points), ("labels", self.labels))}
        return PretrainClips(stages=[s.to(device) for s in self.stages], masks=self.masks.to(device), mark=self.mark,
                             points=moved["points"], labels=moved["labels"])


@dataclass(frozen=True)
class ClipBatch:
    """A step's clips, in groups of one kind of prompt."""

    groups: list[PretrainClips]

    def to(self, device: torch.device | str) -> ClipBatch:
        """A copy on `device`."""
        return ClipBatch([g.to(device) for g in self.groups])


@dataclass(frozen=True, kw_only=True)
class _DecoderMasks:
    """The decoder's output: logits [E, 4, q, q], ious [E, 4], tokens [E, 4, C], present [E] (object score)."""

    logits: Tensor
    ious: Tensor
    tokens: Tensor
    present: Tensor


class PretrainModel(nn.Module):
    """SAM 2 with a frozen trunk, as a training run takes it."""

    def __init__(self, core: Sam2Core) -> None:
        super().__init__()
        self.core = core
        for name, parameter in core.sam.named_parameters():
            parameter.requires_grad_(not name.startswith(TRUNK))

    def losses(self, batch: ClipBatch) -> dict[str, Tensor]:
        """Mean over clips of the losses of `pretrain_losses`."""
        found = [(len(g.masks), pretrain_losses(self.core, g)) for g in batch.groups]
        clips = sum(n for n, _ in found)
        return {k: torch.stack([v[k].float() * (n / clips) for n, v in found]).sum() for k in found[0][1]}

    def trainable_state(self) -> dict[str, Tensor]:
        """All tensors above the trunk, on the CPU, under the names of SAM 2's checkpoints."""
        state = self.core.sam.state_dict()
        return {k: v.detach().cpu().contiguous() for k, v in state.items() if not k.startswith(TRUNK)}

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        """Load a result of `trainable_state`."""
        self.core.sam.load_state_dict(state, strict=False)


def pyramid(core: Sam2Core, stages: list[Tensor]) -> Maps:
    """Compute f0, f1, f2 of `Sam2Core.encode` from the trunk's maps.

    The neck's and the decoder's 1 x 1 convolutions follow each other on the two finest maps: their product is one
    convolution with an eighth and a quarter of the channels, which saves a third of a training step on a CPU.
    """
    neck, decoder = core.sam.image_encoder.neck, core.sam.sam_mask_decoder
    lateral = [conv.conv for conv in reversed(neck.convs)]  # SAM 2 stores them from coarse to fine
    coarse = F.interpolate(lateral[3](stages[3]), scale_factor=2.0, mode=neck.fpn_interp_model)
    return {"f0": _in_turn(stages[0], lateral[0], decoder.conv_s0),
            "f1": _in_turn(stages[1], lateral[1], decoder.conv_s1), "f2": lateral[2](stages[2]) + coarse}


def _in_turn(x: Tensor, first: nn.Conv2d, second: nn.Conv2d) -> Tensor:
    """Compute `second(first(x))` of two 1 x 1 convolutions as one convolution."""
    outer, inner = second.weight.flatten(1), first.weight.flatten(1)
    bias = second.bias if first.bias is None else second.bias + outer @ first.bias  # type: ignore[operator]
    return F.conv2d(x, (outer @ inner)[:, :, None, None], bias)


def pretrain_losses(core: Sam2Core, clips: PretrainClips) -> dict[str, Tensor]:
    """Weighted losses whose sum is minimised: "prompted" (the marked view), "tracked" (views that read its memory).

    The first tracked view reads the reference's memory, each later one also those of the views before it, predicted
    masks included (with gradients).
    """
    e, v = clips.masks.shape[:2]
    maps = pyramid(core, [s.float() for s in clips.stages])
    views = [take(maps, list(range(t, e * v, v))) for t in range(v)]
    small = F.interpolate(clips.masks, size=(core.side // 4,) * 2, mode="area")  # [E, V, q, q]
    marked = _prompted(core, views[0], clips)
    found = {"prompted": _terms(marked, small[:, 0])}
    memory = _remember(core, views[0], marked, clips)
    tracked = []
    for t in range(1, v):
        seen = _tracked(core, views[t], memory)
        tracked.append(_terms(seen, small[:, t]))
        if t + 1 < v:
            memory = [*memory, _remember_prediction(core, views[t], seen)]
    found["tracked"] = torch.stack(tracked).mean()
    return found


def predict_views(core: Sam2Core, clips: PretrainClips) -> tuple[Tensor, Tensor]:
    """Logits [E, q, q] of the marked view and of the next, tracked one; for points the best candidate is taken."""
    v = clips.masks.shape[1]
    maps = pyramid(core, [s.float() for s in clips.stages])
    first, second = (take(maps, list(range(t, len(clips.masks) * v, v))) for t in range(2))
    marked = _prompted(core, first, clips)
    seen = _tracked(core, second, _remember(core, first, marked, clips))
    return _best(marked)[0] if clips.mark == PretrainPrompt.POINTS else marked.logits[:, 0], _best(seen)[0]


def _prompted(core: Sam2Core, maps: Maps, clips: PretrainClips) -> _DecoderMasks:
    """Decode the object marked in a view, without memory; a mask prompts the decoder, as SAM 2 does for pointers."""
    if clips.mark == PretrainPrompt.MASK:
        return _decode(core, maps, maps["f2"], mask=core.sam.mask_downsample(clips.masks[:, :1]))
    plain = maps["f2"] + core.sam.no_mem_embed.view(1, -1, 1, 1)
    return _decode(core, maps, plain, points=clips.points, labels=clips.labels)


def _remember(core: Sam2Core, maps: Maps, marked: _DecoderMasks, clips: PretrainClips) -> list[MemoryEntries]:
    if clips.mark == PretrainPrompt.MASK:
        return [core.mask_entries(maps, clips.masks[:, 0], marked.tokens[:, 0])]
    return [core.remember_prediction(maps, marked.logits[:, 0], marked.tokens[:, 0])]


def _tracked(core: Sam2Core, maps: Maps, memory: list[MemoryEntries]) -> _DecoderMasks:
    attended = core.attend(maps["f2"], torch.stack([m.features for m in memory], dim=1),
                           torch.stack([m.pointers for m in memory], dim=1))
    return _decode(core, maps, attended)


def _remember_prediction(core: Sam2Core, maps: Maps, seen: _DecoderMasks) -> MemoryEntries:
    return core.remember_prediction(maps, *_best(seen))


def _decode(core: Sam2Core, maps: Maps, embedding: Tensor, *, points: Tensor | None = None,
            labels: Tensor | None = None, mask: Tensor | None = None) -> _DecoderMasks:
    """Decode all four masks of SAM's decoder in one pass."""
    sam = core.sam
    if points is None or labels is None:
        points = embedding.new_zeros(len(embedding), 1, 2)
        labels = torch.full((len(embedding), 1), -1, dtype=torch.int32, device=embedding.device)
    sparse, dense = sam.sam_prompt_encoder(points=(points, labels), boxes=None, masks=mask)
    logits, ious, tokens, present = sam.sam_mask_decoder.predict_masks(
        image_embeddings=embedding, image_pe=sam.sam_prompt_encoder.get_dense_pe(), sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense, repeat_image=False, high_res_features=[maps["f0"], maps["f1"]])
    return _DecoderMasks(logits=logits.float(), ious=ious.float(), tokens=tokens, present=present[:, 0].float())


def _best(seen: _DecoderMasks) -> tuple[Tensor, Tensor]:
    """Logits and token of the candidate with the highest predicted IoU."""
    rows = torch.arange(len(seen.ious), device=seen.ious.device)
    best = 1 + seen.ious[:, 1:].argmax(dim=1)
    return seen.logits[rows, best], seen.tokens[rows, best]


def _terms(seen: _DecoderMasks, truth: Tensor) -> Tensor:
    """Sum of a view's losses, truth [E, q, q] in [0, 1]; if the object is out of sight, only its score is learned."""
    visible = truth.flatten(1).amax(dim=1) > 0.5
    score = F.binary_cross_entropy_with_logits(seen.present, visible.float())
    if not bool(visible.any()):
        return score
    logits, truth = seen.logits[visible], truth[visible][:, None].expand(-1, seen.logits.shape[1], -1, -1)
    each = _cross_entropy(logits, truth) + _dice(logits, truth)  # [e, 4]
    candidates = each[:, 1:]
    mask = each[:, 0] + (1 - OTHERS_WEIGHT) * candidates.amin(dim=1) + OTHERS_WEIGHT * candidates.mean(dim=1)
    quality = F.l1_loss(seen.ious[visible], _iou(logits, truth))
    return mask.mean() + quality + score


def _cross_entropy(logits: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy with soft truth, mean over pixels: [e, M, q, q] -> [e, M]."""
    return F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(dim=(2, 3))


def _dice(logits: Tensor, truth: Tensor) -> Tensor:
    p = logits.sigmoid()
    both, either = (p * truth).sum(dim=(2, 3)), (p + truth).sum(dim=(2, 3))
    return 1 - (2 * both + 1) / (either + 1)


@torch.no_grad()
def _iou(logits: Tensor, truth: Tensor) -> Tensor:
    p, g = logits > 0, truth > 0.5
    return (p & g).sum(dim=(2, 3)) / (p | g).sum(dim=(2, 3)).clamp(min=1)
