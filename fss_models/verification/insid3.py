"""INSID3's golden cases: one or several shots on a tiny DINOv3 with Meta's tensor names, and single functions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from fss_models.backbones.dinov3 import Dinov3
from fss_models.methods.insid3.clusters import distances
from fss_models.methods.insid3.config import Insid3Config
from fss_models.methods.insid3.matching import (
    cluster_means,
    enlarge,
    forward_patches,
    grid_masks,
    nearest_references,
)
from fss_models.methods.insid3.model import Insid3
from fss_models.prompts import mask_prompt
from fss_models.verification.figures import relative_error
from fss_models.verification.frame import GoldenCheck
from fss_models.verification.tolerances import EXACT, GOLDEN, Bound

Tensors = dict[str, Tensor]
TIE = 1e-6  # two references as similar as this may change places
_DEBIASED = ("basis/", "debiased/", "prototype/", "clusters/prototypes_debiased")


def run_case(folder: Path, name: str, case: dict[str, Any]) -> Iterator[GoldenCheck]:
    """Compare one case with everything its files hold."""
    place = folder / name
    inputs, want = (load_file(place / f"{n}.safetensors") for n in ("inputs", "outputs"))
    config = json.loads((place / "config.json").read_text())["config"]
    if case["kind"] == "units":
        found = unit_outputs(inputs)
    else:
        found = outputs(build(config, load_file(place / "weights.safetensors")), config, inputs, want)
    for quantity in (k for k in want if k in found):
        ours, bound = found[quantity], bound_of(want[quantity], quantity)
        error = float((ours != want[quantity]).sum()) if bound is EXACT else relative_error(ours, want[quantity])
        yield GoldenCheck(case=name, quantity=quantity, error=error, bound=bound)
    for quantity in want.keys() - found.keys():
        yield GoldenCheck(case=name, quantity=quantity, error=float("nan"), bound=EXACT, note="not compared")


def bound_of(want: Tensor, quantity: str) -> Bound:
    """The limits of a quantity: masks, votes and labels are exact."""
    if not want.is_floating_point():
        return EXACT
    return GOLDEN["insid3"]["debiased" if quantity.startswith(_DEBIASED) else "forward"]


def build(config: Mapping[str, Any], weights: Tensors) -> Insid3:
    """The case's model with its values."""
    encoder = Dinov3(width=config["embed_dim"], blocks=config["depth"], heads=config["heads"])
    encoder.load_hub_state({k: v.float() for k, v in weights.items()})
    settings = Insid3Config(side=config["image_size"], svd_components=config["svd_components"], tau=config["tau"],
                            merge_threshold=config["merge_threshold"])
    return Insid3(preset="debug", config=settings, encoder=encoder)


@torch.no_grad()
def outputs(model: Insid3, config: Mapping[str, Any], inputs: Tensors, want: Tensors) -> Tensors:
    """What the model computes on a case's images, under the official code's names."""
    shots, target = config["shots"], inputs["target_image"].numpy()
    images = model.prepare([*(inputs[f"ref_image_{k}"].numpy() for k in range(shots)), target])
    features = model.encode(images)
    marks = [mask_prompt(inputs[f"ref_mask_{k}"].numpy() > 0) for k in range(shots)]
    prompts, pair = model.collate([marks], images.sizes), torch.tensor([[0, shots]])
    memory = model.memorise(features, prompts)
    prediction, found = model.segment(memory, features, pair), model.match(memory, features, pair)
    raw, basis = model.encoder(images.pixels), model.basis()
    grid = raw.shape[-2:]
    size = target.shape[:2] if config["resize_to_orig_size"] else (model.side, model.side)
    logits, own = prediction.logits, {k: v[shots] for k, v in features.maps.items()}
    masks = {"grid": found.chosen[0].view(grid), "input_size": logits[0] > 0,
             "final": F.interpolate(logits[None], size=size, mode="bilinear")[0, 0] > 0}
    black = model.prepare([np.zeros((16, 16, 3), np.uint8)])
    nearest = nearest_references(memory.tensors["references"], own["debiased"].flatten(1)[None])[0]
    compared: Tensors = {
        "pixels/ref_every4": images.pixels[:shots, :, ::4, ::4],
        "pixels/target_every4": images.pixels[shots:, :, ::4, ::4],
        "masks/ref_input": prompts.masks[0], "masks/ref_grid": memory.tensors["masks"][0].unflatten(1, grid),
        "basis/noise_features": model.encoder(black.pixels), "basis/projector": basis.projector,
        "basis/singular_values": basis.singular_values,
        "features/ref": raw[:shots], "features/target": raw[shots],
        "debiased/ref": features.maps["debiased"][:shots], "debiased/target": own["debiased"],
        "prototype/ref": memory.tensors["prototype"][0],
        "candidates/forward_similarity": found.similarity[0].view(grid),
        "candidates/forward_mask": forward_patches(found.similarity, model.config.fallback_quantile)[0].view(grid),
        "candidates/nearest_index": _settle_ties(nearest.unflatten(1, grid), want["candidates/nearest_index"],
                                                 features.maps["debiased"]),
        "candidates/votes": found.votes[0].view(grid), "candidates/mask": found.candidates[0].view(grid),
        **{f"mask/{k}": v for k, v in masks.items()}}
    return compared | _cluster_outputs(model, want["clusters/labels"], raw[shots], own, found)


def _cluster_outputs(model: Insid3, labels: Tensor, raw: Tensor, own: Tensors, found: Any) -> Tensors:
    """What depends on the clusters, in the official order: each cluster is read at its first patch."""
    unit = F.normalize(raw.flatten(1), dim=0)
    first = torch.tensor([int((labels.flatten() == j).nonzero()[0]) for j in range(int(labels.max()) + 1)])
    mine = own["labels"].flatten()
    heights = linkage(squareform(distances(unit.T[None])[0].numpy(), checks=False), "average")[:, 2]
    plain = F.normalize(cluster_means(own["debiased"].flatten(1)[None], mine[None])[0], dim=0)
    scores = {k: getattr(found.scores, k)[0, first] for k in ("area", "cross", "intra", "combined")}
    return {"clusters/labels": _official_labels(mine.view(labels.shape), labels),
            "clusters/merge_distances": torch.from_numpy(np.sort(heights)),
            "clusters/prototypes_debiased": plain[:, first].T,
            "clusters/prototypes_original": own["clusters"].flatten(1)[:, first].T,
            "scores/seed": labels.flatten()[found.scores.seed[0]], **{f"scores/{k}": v for k, v in scores.items()}}


def _official_labels(ours: Tensor, theirs: Tensor) -> Tensor:
    """Our clusters under the official numbers; -1 where a cluster of ours is none of theirs."""
    named = torch.full_like(theirs, -1)
    for label in ours.unique():
        inside = ours == label
        number = theirs[inside][0]
        if torch.equal(theirs == number, inside):
            named[inside] = number
    return named


def _settle_ties(ours: Tensor, theirs: Tensor, debiased: Tensor) -> Tensor:
    """Our indices [K, g, g], with theirs where both references are equally similar to the patch."""
    shots, query = ours.shape[0], debiased[-1].flatten(1)
    similarity = debiased[:shots].flatten(2).mT @ query  # [K, L reference, L query]
    a, b = (similarity.gather(1, i.flatten(1)[:, None])[:, 0] for i in (ours, theirs))
    return torch.where(((a - b).abs() < TIE).view(ours.shape), theirs, ours)


def unit_outputs(given: Tensors) -> Tensors:
    """The single functions on the inputs of the file of units."""
    coarse = grid_masks(given["downsample/masks"].float(), 8).view(-1, 8, 8)
    query, grid = given["fallback/target"].flatten(1)[None], given["fallback/target"].shape[-2:]
    similarity = given["fallback/prototype"][None] @ query[0]
    nearest = nearest_references(given["fallback/ref"].flatten(2)[None], query)
    votes = grid_masks(given["fallback/ref_masks"].float(), grid[0])[None].gather(2, nearest).sum(1)
    wanted = (len(given["fallback/ref"]) + 1) // 2
    both = forward_patches(similarity, Insid3Config().fallback_quantile) & (votes >= wanted)
    return {"downsample/grid8": coarse, "upsample/45x50": enlarge(given["upsample/grid"].float()[None], (45, 50))[0],
            "fallback/quantile_0.9": similarity.quantile(0.9), "fallback/candidates": both[0].view(grid)}
