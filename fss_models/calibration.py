"""How sure a mask is: the probability that the class is in the image, and that the mask is good.

`measure` describes a prediction by a few numbers that every method gives: its predicted IoU, statistics of its logits,
and the similarity between the predicted object and each shot's object. A `Calibrator` is two logistic regressions on
these numbers (Platt, 1999), fitted on pairs of support set and image, some with the class and some without. Where a
support set has three shots or more, a leave-one-out test among the shots shifts both regressions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import Tensor

from fss_models.clip import Features, Prediction, _Tensors
from fss_models.errors import FssError

NAMES = ("predicted_iou", "probability_inside", "peak", "stability", "entropy", "log_area", "similarity", "contrast",
         "best_match", "least_shot", "shot_spread")
VERSION = 1
GOOD_IOU = 0.5  # a mask of at least this IoU is good
MIN_ADJUST = 3  # smallest number of shots for leave-one-out
OFFSET = 1.0  # a mask is stable if moving its threshold by this logit does not change it
RIDGE = 1e-2  # ridge penalty per sample, on standardised numbers


@dataclass(frozen=True, kw_only=True)
class SupportSignature(_Tensors):
    """Appearance of S support sets: unit vectors of each shot's object and of its background; padded shots are zeros.

    inside, outside [S, K, C]; counts [S]; scene [S, C] the mean over all pixels of the set's photos, unit length
    """

    inside: Tensor
    outside: Tensor
    counts: Tensor
    scene: Tensor


@dataclass(frozen=True, kw_only=True)
class ShotAgreement:
    """Leave-one-out results of a support set: how well each shot is segmented by the others. Needs three shots or more.

    presence, quality  mean logits of the calibrator; iou  mean IoU with the shots' own masks
    """

    presence: float
    quality: float
    iou: float


def look(features: Features) -> Tensor:
    """The coarsest feature map (the one with most channels) [N, C, h, w], with unit length at every pixel."""
    coarsest = min(features.maps.values(), key=lambda m: (m.shape[-1] * m.shape[-2], -m.shape[1]))
    return F.normalize(coarsest.float(), dim=1)


def describe_support(features: Features, masks: Tensor) -> SupportSignature:
    """Signature of one support set, from `features` of its K photos and masks [K, h', w'] in [0, 1] of the object."""
    maps = look(features)
    cover = F.interpolate(masks[:, None].to(maps), size=maps.shape[-2:], mode="area")
    pooled = [F.normalize(_mean(maps, weight), dim=1) for weight in (cover, 1 - cover)]
    scene = F.normalize(maps.mean(dim=(0, 2, 3)), dim=0)
    return SupportSignature(inside=pooled[0][None], outside=pooled[1][None], scene=scene[None],
                     counts=torch.tensor([len(maps)], device=maps.device))


def stack(signatures: list[SupportSignature]) -> SupportSignature:
    """Join the signatures of several support sets; sets with fewer shots are padded with zeros."""
    width = max(s.inside.shape[1] for s in signatures)
    grown = [[F.pad(v, (0, 0, 0, width - v.shape[1])) for v in (s.inside, s.outside)] for s in signatures]
    return SupportSignature(inside=torch.cat([g[0] for g in grown]), outside=torch.cat([g[1] for g in grown]),
                     counts=torch.cat([s.counts for s in signatures]), scene=torch.cat([s.scene for s in signatures]))


def measure(prediction: Prediction, features: Features, signature: SupportSignature, pairs: Tensor) -> Tensor:
    """Numbers [P, len(NAMES)] that describe P predictions, on their device.

    `pairs` [P, 2] is as in `segment`: (row of `signature`, row of `features`).
    """
    maps, logits = look(features)[pairs[:, 1]], prediction.logits.float()
    columns = [prediction.scores.float(), *_of_logits(logits), *_of_maps(maps, logits, signature, pairs[:, 0])]
    return torch.stack(columns, dim=1)


def _of_logits(logits: Tensor) -> list[Tensor]:
    """The numbers that depend on logits [P, h, w] alone: probability_inside, peak, stability, entropy, log_area."""
    flat = logits.flatten(1)
    chance, inside = flat.sigmoid(), (flat > 0).float()
    count = inside.sum(dim=1)
    peak = flat.topk(max(1, flat.shape[1] // 100), dim=1).values.mean(dim=1)
    wide, narrow = (flat > -OFFSET).sum(dim=1), (flat > OFFSET).sum(dim=1)
    safe = chance.clamp(1e-6, 1 - 1e-6)
    entropy = -(safe * safe.log() + (1 - safe) * (1 - safe).log()).mean(dim=1)
    area = (count / flat.shape[1]).clamp(min=1e-4).log()
    return [(chance * inside).sum(dim=1) / count.clamp(min=1), peak.clamp(-20, 20), narrow / wide.clamp(min=1), entropy,
            area]


def _of_maps(maps: Tensor, logits: Tensor, signature: SupportSignature, sets: Tensor) -> list[Tensor]:
    """The numbers that compare features: similarity, contrast, best_match, least_shot, shot_spread."""
    inside, outside = signature.inside[sets], signature.outside[sets]  # [P, K, C]
    weight = F.interpolate(logits.sigmoid()[:, None], size=maps.shape[-2:], mode="area")
    marked = F.normalize(_mean(maps, weight), dim=1)
    real = (torch.arange(inside.shape[1], device=maps.device) < signature.counts[sets][:, None]).float()
    near = torch.einsum("pc,pkc->pk", marked, inside)
    far = torch.einsum("pc,pkc->pk", marked, outside)
    gap = (torch.einsum("pchw,pkc->pkhw", maps, inside - outside) * real[..., None, None]).sum(dim=1)
    gap = gap.flatten(1) / real.sum(dim=1, keepdim=True)
    best = gap.topk(max(1, gap.shape[1] // 50), dim=1).values.mean(dim=1)
    mean = _over_shots(near, real)
    spread = _over_shots((near - mean[:, None]) ** 2, real).sqrt()
    least = near.masked_fill(real == 0, 2).amin(dim=1)
    return [mean, mean - _over_shots(far, real), best, least, spread]


def _over_shots(values: Tensor, real: Tensor) -> Tensor:
    return (values * real).sum(dim=1) / real.sum(dim=1)


def _mean(maps: Tensor, weight: Tensor) -> Tensor:
    """Mean of maps [P, C, h, w], weighted by [P, 1, h, w] -> [P, C]."""
    return (maps * weight).sum(dim=(2, 3)) / weight.sum(dim=(2, 3)).clamp(min=1e-6)


@dataclass(frozen=True, kw_only=True)
class Calibrator:
    """Two logistic regressions on standardised `measure`s, their shift by leave-one-out, and the fitted photos' domain.

    centre, scale [F]; presence [F + 1] weights for the class being there, quality [F + 1] for the mask being good where
    it is there; the constant comes last
    shift [2, 4]: of presence and quality: weight of their logit, of its leave-one-out mean (less `usual`), of the
    leave-one-out IoU (less `usual`), constant; zeros where too few classes had enough photos to fit it
    usual [3]: the mean `ShotAgreement` of the support sets that it was fitted on
    scenes [M, C]: the mean scene of the fitted photos and its main directions; spread [M - 1], limit [1]: how far
    from it a support set may be
    """

    centre: Tensor
    scale: Tensor
    presence: Tensor
    quality: Tensor
    shift: Tensor
    usual: Tensor
    scenes: Tensor
    spread: Tensor
    limit: Tensor
    about: dict[str, str]

    def logits(self, measured: Tensor, opinion: ShotAgreement | None = None, prevalence: float = 0.5) -> Tensor:
        """Logits [P, 2] from measures [P, F]: that the class is there, and that the mask is good if it is there.

        `prevalence` is the share of images that show the class; in the fitted pairs it was one half.
        """
        plain = with_one((measured - self.centre) / self.scale) @ torch.stack([self.presence, self.quality], dim=1)
        if opinion is not None and bool(self.shift.any()):
            told = torch.tensor([[opinion.presence, opinion.iou], [opinion.quality, opinion.iou]])
            gap = told - self.usual[[0, 2, 1, 2]].view(2, 2)
            plain = plain * self.shift[:, 0] + (gap * self.shift[:, 1:3]).sum(dim=1) + self.shift[:, 3]
        moved = torch.tensor(prevalence / (1 - prevalence)).log()
        return torch.stack([plain[:, 0] + moved, plain[:, 1]], dim=1)

    def probabilities(self, measured: Tensor, opinion: ShotAgreement | None = None, prevalence: float = 0.5) -> Tensor:
        """Probabilities [P, 2]: that the class is there, and that it is there and the mask is good."""
        return self.logits(measured, opinion, prevalence).sigmoid().cumprod(dim=1)

    def far(self, signature: SupportSignature) -> Tensor:
        """Which support sets [S] bool have photos unlike all photos that the calibrator was fitted on."""
        return distance(signature.scene.cpu(), self.scenes, self.spread) > self.limit

    def save(self) -> bytes:
        """Serialise the calibrator as the bytes of a safetensors file."""
        named = {k: v.contiguous() for k, v in self.__dict__.items() if isinstance(v, Tensor)}
        about = {"version": VERSION, "names": NAMES, "about": self.about}
        # one key, since safetensors does not keep the order of several
        return save(named, metadata={"fss": json.dumps(about, sort_keys=True)})


def load_calibrator(data: bytes, where: str = "") -> Calibrator:
    """Load the tensors that `Calibrator.save` wrote. Raises `FssError` naming `where` for another version."""
    length = int.from_bytes(data[:8], "little")
    known = json.loads(json.loads(data[8:8 + length]).get("__metadata__", {}).get("fss", "{}"))
    if known.get("version") != VERSION or known.get("names") != list(NAMES):
        raise FssError("is a calibrator of another version", where=where, hint="run `fss calibrate` again")
    return Calibrator(**load(data), about=known["about"])


def with_one(values: Tensor) -> Tensor:
    """Append a column of ones: [P, F] -> [P, F + 1]."""
    return torch.cat([values, values.new_ones(len(values), 1)], dim=1)


def distance(scenes: Tensor, known: Tensor, spread: Tensor) -> Tensor:
    """Distance [S] of scenes [S, C] from the fitted photos.

        It is the root mean square, over the main directions, of the number of standard deviations from the mean.
        """
    along = (scenes - known[0]) @ known[1:].T
    rest = ((scenes - known[0]) ** 2).sum(dim=1) - (along ** 2).sum(dim=1)
    parts = torch.cat([along / spread[:-1], rest.clamp(min=0).sqrt()[:, None] / spread[-1]], dim=1)
    return (parts ** 2).mean(dim=1).sqrt()


def summary(about: Mapping[str, str]) -> str:
    """One line that describes the calibrator."""
    return f"calibrated on {about['pairs']} pairs of {about['classes']} classes of {about['dataset']}"
