"""FSSAM: a pseudo memory of the query beside the support's, in SAM 2's memory attention (ICML 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fss_models import losses
from fss_models.augmentation import Augmentation
from fss_models.backbones.dinov2 import Dinov2, build_dinov2
from fss_models.clip import Clip, Features, Images, Memory, Prediction, PromptBatch, PromptKind
from fss_models.errors import FssError
from fss_models.methods.fssam.attention import PairMemory, attend, key_prototypes
from fss_models.methods.fssam.checkpoint import load_dinov2, load_sam2, read_whole
from fss_models.methods.fssam.config import FssamConfig
from fss_models.methods.fssam.core import FssamCore
from fss_models.methods.fssam.ops import pool, resize, squared_dice
from fss_models.methods.fssam.prior import (
    ShotPriors,
    add_background,
    prior_logits,
    prior_masks,
    prior_prototypes,
    trunk_features,
)
from fss_models.methods.fssam.refine import QueryMemory, refine, support_agreement
from fss_models.opencv_augmentation import SemsegAugmentation
from fss_models.opencv_resize import OpenCvPreprocessor
from fss_models.preprocess import IMAGENET
from fss_models.presets import RANDOM, find_preset, preprocessor
from fss_models.registry import register_method
from fss_models.sam2_core.build import build_sam2, origin
from fss_models.sam2_core.core import DecodedMasks, Maps, MemoryEntries, take
from fss_models.segmenter import Negatives, Segmenter

PUBLISHED_SIDE = 512
PRIOR_SIDE = 560  # DINOv2's input, whatever SAM 2's is
OPTIMISED = ("sam_mask_decoder.", "memory_encoder.", "memory_attention.")
UNREACHED = ("sam_mask_decoder.conv_s0.", "sam_mask_decoder.conv_s1.", "sam_mask_decoder.iou_prediction_head.",
             "sam_mask_decoder.pred_obj_score_head.")


@register_method("fssam", config=FssamConfig)
class Fssam(Segmenter):
    """FSSAM: `memorise` computes all that needs no query: memories, pointers, and prototypes of PPG, IMR and SCMA."""

    presets: ClassVar[tuple[str, ...]] = ("debug", "nano", "tiny", "small", "base_plus", "large")
    prompt_kinds: ClassVar[frozenset[PromptKind]] = frozenset({PromptKind.MASK, PromptKind.BOX})
    corners_aligned: ClassVar[bool] = True  # the released evaluation stretches logits so
    instance_sources: ClassVar[frozenset[str]] = frozenset({"pieces", "prompts"})
    config: FssamConfig

    def __init__(
        self, *, preset: str, config: FssamConfig, weights: str | None = None, sam: Any = None, prior: Any = None
    ) -> None:
        """`weights` is as in `build_sam2`, or an official FSSAM checkpoint, which holds both SAM 2 and DINOv2.

        `sam` (a `SAM2Base`) and `prior` (pixels -> features), of any size, replace the preset's.
        """
        side = int(sam.image_size) if sam is not None else _side(preset, config)
        plain = preprocessor(preset) if sam is None else None
        mean, std = (plain.mean, plain.std) if plain else IMAGENET
        super().__init__(preset=preset, preprocessor=OpenCvPreprocessor(side=side, mean=mean, std=std), config=config)
        whole = read_whole(weights)
        given = sam is not None or whole is not None
        if sam is None:
            sam = build_sam2(preset, weights=RANDOM if whole else weights, object_scores=True, side=side)
        if whole and weights:
            load_sam2(sam, whole[0], weights, preset)
        self._checkpoint = given or origin(sam).checkpoint
        self.core = FssamCore(sam)
        if not self._checkpoint:  # an untrained object score must not switch pointers off by chance
            nn.init.constant_(self.core.sam.sam_mask_decoder.pred_obj_score_head.layers[-1].bias, 10.0)
        self.prior: Any = prior if prior is not None else _prior(preset, config)
        if whole and weights and self.prior is not None and not config.prior_weights:
            load_dinov2(self.prior, whole[1], weights)

    @classmethod
    def negatives(cls, config: FssamConfig) -> Negatives:
        """PPG takes what is marked for background."""
        return "marks" if config.ppg else "none"

    @property
    def untrained(self) -> bool:
        """Whether neck, memory and decoder, or the prior's DINOv2, hold random values."""
        return not self._checkpoint or (self.prior is not None and not self.prior.pretrained)

    @property
    def keeps_random_parts(self) -> bool:
        """Whether SAM 2 is random and stays so, or the prior's DINOv2 is."""
        kept = not self._checkpoint and self.train_mode != "all_but_trunk"
        return kept or (self.prior is not None and not self.prior.pretrained)

    def frozen_weights(self) -> dict[str, str]:
        """Pretrained weights of the trunk, shipped ones and DINOv2's; the caller records a file that it gave itself."""
        sam = self.core.sam
        trunk = getattr(sam.image_encoder.trunk, "pretrained", {})
        return {**trunk, **origin(sam).shipped, **(self.prior.pretrained if self.prior is not None else {})}

    @classmethod
    def augmentation(cls, side: int, *, scale: tuple[float, float]) -> Augmentation:
        """Scale, rotation, blur, flip and crop, as the released code has them."""
        return SemsegAugmentation(crop=side, scale=scale)

    # training

    @property
    def train_mode(self) -> str:
        """The value of `config.train`, with auto resolved."""
        if self.config.train != "auto":
            return self.config.train
        return "published" if self._checkpoint else "all_but_trunk"

    def set_trainable(self) -> None:
        """Train the official optimiser's modules; with `all_but_trunk` everything outside the frozen features."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(self._trains(name.removeprefix("core.sam.")))

    def _trains(self, name: str) -> bool:
        if self.train_mode == "all_but_trunk":
            return not name.startswith(("image_encoder.trunk.", "prior."))
        reached = self.train_mode == "published" or not name.startswith(UNREACHED)
        return name.startswith(OPTIMISED) and reached

    def trainable_names(self) -> set[str]:
        """Trained parameters, and the random point encoding that goes with a decoder trained from scratch."""
        names = super().trainable_names()
        if self.train_mode == "all_but_trunk":
            names |= {n for n in self.state_dict() if n.endswith("positional_encoding_gaussian_matrix")}
        return names

    # the contract

    def encode(self, images: Images) -> Features:
        """Maps f0, f1, f2 as in `Sam2Core.encode`; with PPG also prior [N, D, h, w], the frozen features.

        No gradient flows here unless the neck is trained from scratch.
        """
        return self.finish(self.encode_frozen(images))

    def frozen_part(self) -> Sequence[nn.Module]:
        """SAM 2's image encoder, the decoder's two 1 x 1 convolutions, DINOv2; trunk and DINOv2 if the neck is trained.

        No gradient reaches the two convolutions, though the official optimiser holds them.
        """
        sam, own = self.core.sam, [] if self.prior is None else [self.prior]
        if self.train_mode == "all_but_trunk":
            return [sam.image_encoder.trunk, *own]
        return [sam.image_encoder, sam.sam_mask_decoder.conv_s0, sam.sam_mask_decoder.conv_s1, *own]

    @torch.no_grad()
    def encode_frozen(self, images: Images) -> Features:
        """All of `encode`; where the neck is trained, the trunk's stage0 ... stage3 take the place of f0, f1, f2."""
        pixels = images.pixels.to(self.device)
        trunk = self.core.trunk_maps(pixels)
        maps = {} if self.prior is None else {"prior": self.prior(self._prior_input(pixels))}
        if self.train_mode == "all_but_trunk":
            maps |= {f"stage{i}": stage for i, stage in enumerate(trunk)}
        else:
            maps |= self._pyramid(trunk)
        return Features(maps=maps, sizes=images.sizes)

    def finish(self, frozen: Features) -> Features:
        """Run SAM 2's neck on the trunk's stages, where the neck is trained."""
        if self.train_mode != "all_but_trunk":
            return frozen
        kept = {k: v for k, v in frozen.maps.items() if k == "prior"}
        return Features(maps=kept | self._pyramid([frozen.maps[f"stage{i}"] for i in range(4)]), sizes=frozen.sizes)

    def _pyramid(self, trunk: list[Tensor]) -> Maps:
        maps = self.core.pyramid(trunk)
        return maps | {"prior": trunk_features(trunk)} if self.config.ppg and self.prior is None else maps

    def memorise(self, features: Features, prompts: PromptBatch) -> Memory:
        """Tensors memory [S, K, Cm, g, g] and pointers [S, K, C] of each reference.

        PPG adds prototypes: prior [S, K, 2, D] (foreground and background features) and refine [S, K, Cm] (the
        memory's). SCMA adds keys [S, K, L, C] (the object's keys in each attention layer). Keys and values of single
        tokens are not kept: they are 16 times the memory's size and cost less than 1 % of a query.
        What negative references mark is background for PPG; they have no part in all else.
        Raises `FssError` for prompts that are neither masks nor boxes; a box is a filled mask (`ann_type: bbox`).
        """
        kind, image = prompts.kind.flatten(), prompts.image.flatten()
        real = prompts.shown.flatten().nonzero()[:, 0].to(self.device)
        masks = self._masks(prompts).flatten(0, 1).to(self.device, torch.float32)
        found = self._support(take(features.maps, image.to(self.device)[real]), masks[real])
        shape = tuple(prompts.kind.shape)
        spread = {k: v.new_zeros(len(kind), *v.shape[1:]).index_copy(0, real, v).unflatten(0, shape)
                  for k, v in found.items()}
        if prompts.negative is not None:
            seen = features.maps["prior"][prompts.image.to(self.device)]
            small = resize(masks, seen.shape[-1]).unflatten(0, shape)
            marked = small * prompts.negatives.to(self.device)[..., None, None]
            spread["prior"] = add_background(spread["prior"], (1 - small).sum(dim=(-2, -1)), seen, marked)
        return Memory(tensors=spread, counts=prompts.shown.sum(dim=1))

    def segment(self, memory: Memory, features: Features, pairs: Tensor) -> Prediction:
        """Logits [P, R, R] of the candidate with the highest predicted IoU; the score is that IoU."""
        logits, ious, _ = self.decode_pairs(memory, features, pairs).best()
        return Prediction(logits=self._full(logits[:, None])[:, 0] + self._prior_logits(memory, features, pairs),
                          scores=ious.float().clamp(0, 1))

    def losses(self, clip: Clip) -> dict[str, Tensor]:
        """Loss dice (with squared denominator) on the selected candidate.

        Where the decoder is trained from scratch, dice is taken on all candidates alike, and a loss iou trains the
        head that selects.
        """
        b, k, j = clip.shape
        self.core.make_trainable_again()
        features = self.clip_features(clip)
        memory = self.memorise(features, clip.prompts)
        sets, images = torch.arange(b).repeat_interleave(j), b * k + torch.arange(b * j)
        decoded = self.decode_pairs(memory, features, torch.stack([sets, images], dim=1))
        targets = clip.target_masks.flatten(0, 1).to(self.device, torch.float32)
        kept = ~clip.ignore.flatten(0, 1).to(self.device)
        if self.config.void == "background":
            targets, kept = targets * kept, torch.ones_like(kept)
        if self.train_mode != "all_but_trunk":
            return {"dice": squared_dice(self._full(decoded.best()[0][:, None])[:, 0], targets, kept)}
        return self._candidate_losses(decoded, targets, kept)

    def _candidate_losses(self, decoded: DecodedMasks, targets: Tensor, kept: Tensor) -> dict[str, Tensor]:
        logits = self._full(decoded.logits)  # [P, M, R, R]
        masks, valid = (x[:, None].expand(logits.shape) for x in (targets, kept))
        dice = squared_dice(logits.flatten(0, 1), masks.flatten(0, 1), valid.flatten(0, 1))
        return {"dice": dice, "iou": F.mse_loss(decoded.ious.float(), losses.mask_iou(logits, masks, valid))}

    # support

    def _prior_input(self, pixels: Tensor) -> Tensor:
        """Convert images normalised for SAM 2's trunk [N, 3, R, R] to DINOv2's input [N, 3, 560, 560]."""
        mean, std, want_mean, want_std = (
            torch.tensor(v, device=pixels.device).view(1, 3, 1, 1)
            for v in (self.preprocessor.mean, self.preprocessor.std, *IMAGENET))
        return (resize(pixels * std + mean, PRIOR_SIDE) - want_mean) / want_std

    def _masks(self, prompts: PromptBatch) -> Tensor:
        """Masks [S, K, R, R] of the references: mask prompts unchanged, boxes filled."""
        given = torch.unique(prompts.kind).tolist()
        if {PromptKind.POINTS, PromptKind.SCRIBBLE} & set(given):
            raise FssError("method 'fssam' takes masks and boxes only", hint="give the support as a mask or a box")
        if PromptKind.BOX not in given:
            return prompts.masks
        centre = torch.arange(self.side, device=prompts.points.device) + 0.5
        x, y = ((centre >= prompts.points[:, :, 0, i, None]) & (centre <= prompts.points[:, :, 1, i, None])
                for i in (0, 1))
        filled = (y[..., :, None] & x[..., None, :]).to(prompts.masks)
        return torch.where((prompts.kind == PromptKind.BOX)[..., None, None], filled, prompts.masks)

    def _support(self, maps: Maps, masks: Tensor) -> dict[str, Tensor]:
        """The tensors that `memorise` keeps of references with masks [E, R, R], row by row."""
        entries = self.core.remember_soft(maps, masks)
        found = {"memory": entries.features, "pointers": entries.pointers}
        if self.config.ppg:
            found["prior"] = prior_prototypes(maps["prior"], masks)
            found["refine"] = pool(entries.features, resize(masks, entries.features.shape[-1]))
        if self.config.scma:
            found["keys"] = key_prototypes(self.core.sam.memory_attention, entries.features,
                                           self.core.memory_position(entries.features), masks)
        return found

    # query

    def decode_pairs(self, memory: Memory, features: Features, pairs: Tensor) -> DecodedMasks:
        """Decode three candidate masks for each pair."""
        sets, maps = pairs[:, 0].to(self.device), take(features.maps, pairs[:, 1].to(self.device))
        counts = memory.counts.to(self.device)[sets]
        attended = torch.empty_like(maps["f2"])
        for count in counts.unique().tolist():  # attention over padding differs from attention without it
            rows = (counts == count).nonzero()[:, 0]
            held, which = sets[rows].unique(return_inverse=True)
            support = {k: v[held][:, :count] for k, v in memory.tensors.items()}
            attended = attended.index_copy(0, rows, self.attended(support, which, take(maps, rows)).to(attended))
        return self.core.decode(maps, attended, candidates=True)

    def decode_points(self, memory: Memory, features: Features, pairs: Tensor, points: Tensor,
                      labels: Tensor) -> tuple[Tensor, Tensor]:
        """As `Segmenter.decode_points`, with SAM 2's decoder on the image without memory."""
        return self.core.decode_points(take(features.maps, pairs[:, 1].to(self.device)), points, labels)

    def attended(self, support: dict[str, Tensor], rows: Tensor, maps: Maps) -> Tensor:
        """Memory attention's output [P, C, g, g] for the query maps [P, ...].

        `support` holds S sets with the same number of shots (see `memorise`); `rows` [P] is the set each query uses.
        """
        memory = self.pair_memory(support, rows, maps)
        tokens = attend(self.core.sam.memory_attention, self.core.query_tokens(maps["f2"]), memory)
        return tokens.transpose(1, 2).unflatten(2, maps["f2"].shape[-2:])

    def pair_memory(self, support: dict[str, Tensor], rows: Tensor, maps: Maps) -> PairMemory:
        """The memory that each query attends to; the arguments are those of `attended`."""
        pointers, query = support["pointers"][rows], None
        if self.config.ppg:
            clean = self.query_memory(support, rows, maps)
            query = clean.features.flatten(2).transpose(1, 2)
            pointers = torch.cat([pointers, clean.pointers[:, None]], dim=1)
        prototypes = support["keys"][rows].transpose(1, 2) if self.config.scma else None  # [P, L, K, C]
        if prototypes is not None and self.config.k_shot == "released":
            prototypes = prototypes[:, :, :1]
        return PairMemory(
            supports=support["memory"].flatten(3).transpose(2, 3), rows=rows, query=query,
            pointers=self.core.pointer_tokens(pointers), prototypes=prototypes,
            position=self.core.memory_position(support["memory"][:, 0]))

    def query_memory(self, support: dict[str, Tensor], rows: Tensor, maps: Maps) -> MemoryEntries:
        """PPG and IMR: the query's refined pseudo memory and the pointer of its clean prior."""
        noisy_mask, clean_mask = self.shot_priors(support, rows, maps).mean()
        entries = self.core.remember_soft(maps, clean_mask)
        clean = QueryMemory(features=entries.features, mask=resize(clean_mask, entries.features.shape[-1]))
        if self.config.num_refine:
            noisy = QueryMemory(features=self.core.spatial_memory(maps["f2"], noisy_mask),
                                mask=resize(noisy_mask, clean.mask.shape[-1]))
            confirmed = support_agreement(noisy.features, support["refine"][rows])
            *_, clean = refine(noisy, clean, confirmed, rounds=self.config.num_refine, version=self.config.ver_refine)
        return MemoryEntries(features=clean.features, pointers=entries.pointers)

    def _prior_logits(self, memory: Memory, features: Features, pairs: Tensor) -> Tensor | float:
        """Weighted `prior_logits` of each pair at full size, [P, R, R]."""
        if not self.config.prior_logits:
            return 0.0
        sets, images = pairs.to(self.device).unbind(dim=1)
        found = prior_logits(features.maps["prior"][images], memory.tensors["prior"][sets])
        return self.config.prior_logits * self._full(found[:, None])[:, 0]

    def shot_priors(self, support: dict[str, Tensor], rows: Tensor, maps: Maps) -> ShotPriors:
        """Run PPG on every shot of each pair."""
        return prior_masks(maps["prior"], support["prior"][rows], self.side)

    def _full(self, logits: Tensor) -> Tensor:
        """Enlarge logits to the input's size, [P, M, R/4, R/4] -> [P, M, R, R]."""
        return F.interpolate(logits.float(), size=(self.side, self.side), mode="bilinear", align_corners=False)


def _side(preset: str, config: FssamConfig) -> int:
    own = find_preset(preset)
    return config.side or (PUBLISHED_SIDE if own.config else own.side)


def _prior(preset: str, config: FssamConfig) -> Dinov2 | None:
    """Build the prior's feature extractor; None means that the trunk's own features are used."""
    choice = config.prior
    if choice == "auto":
        choice = "dinov2_base" if find_preset(preset).config else "trunk"
    if not config.ppg or choice == "trunk":
        if config.prior_weights:
            raise FssError("prior_weights are given, but no DINOv2 is used", hint="set prior: dinov2_base, ppg: true")
        return None
    return build_dinov2(choice.removeprefix("dinov2_"), config.prior_weights or None)
