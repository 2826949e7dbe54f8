"""Comparison of FSSAM's single functions and episode sampler with the official code's (`units.npz`, `episodes.npz`).

|difference| <= 1e-6 max(1, largest value) + 1e-4 |reference|; labels, counts of random numbers and episodes are exact.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from fss_models.methods.fssam.ops import pool, resize, squared_dice
from fss_models.methods.fssam.prior import ShotPriors, prior_masks, prior_prototypes
from fss_models.methods.fssam.refine import QueryMemory, refine, support_agreement
from fss_models.metrics import episode_counts
from fss_models.opencv_augmentation import SemsegAugmentation
from fss_models.opencv_resize import linear, nearest
from fss_models.optimisation import poly_rate
from fss_models.verification.figures import excess
from fss_models.verification.frame import GoldenCheck
from fss_models.verification.tolerances import EXACT, FSSAM_RELATIVE, UNIT, Bound
from fss_models.worker_episodes import base_seeds, published_episodes

Arrays = dict[str, Tensor]
PICTURE = Bound(tolerance=0.51, floor=1.0)  # augmented pixels in 0..255: OpenCV's versions round differently


def check_units(want: Arrays) -> Iterator[GoldenCheck]:
    """Compare every function that the file has values of."""
    groups = (_pooling, _dice, _poly, _counts, _prior, _refinement, _validation, _augmentation, _seeds)
    for found in groups:
        for key, ours in found(want).items():
            picture = key.startswith("train/") and key.endswith("image")
            exact = key.endswith(("label", "label_out", "random", "321", "rows"))
            bound = EXACT if exact else PICTURE if picture else UNIT.times(max(1.0, float(want[key].abs().max())))
            error = excess(ours, want[key], 0.0 if exact or picture else FSSAM_RELATIVE)
            yield GoldenCheck(case="units", quantity=key, error=error, bound=bound)


def check_episodes(want: Arrays) -> Iterator[GoldenCheck]:
    """Run the sampler for each number of shots and workers in the file; the error is the number of wrong rows."""
    pools = {int(k.removeprefix("class").removesuffix("_files")): v.tolist()
             for k, v in want.items() if k.startswith("class")}
    classes = sorted(pools)
    present = [[c for c in classes if c in label.unique().tolist()] for label in want["labels"]]
    for key, rows in want.items():
        if not key.startswith("episodes_shot"):
            continue
        shots, workers = (int(x) for x in key.removeprefix("episodes_shot").split("_workers"))
        drawn = published_episodes(present, pools, shots, episodes=len(rows), workers=workers)
        ours = [[i // len(present), d.query, classes.index(d.class_id), *d.supports] for i, d in enumerate(drawn)]
        wrong = sum(a != b for a, b in zip(ours, rows.tolist(), strict=True))
        yield GoldenCheck(case="episodes", quantity=key, error=float(wrong), bound=EXACT)


def _pooling(want: Arrays) -> Arrays:
    return {"gap/out": pool(want["gap/feat"], want["gap/mask"][:, 0])[:, :, None, None]}


def _dice(want: Arrays) -> Arrays:
    logits = want["dice/logits"].clone().requires_grad_()
    target = (want["dice/target"] == 1).float()
    loss = squared_dice(logits, target, torch.ones_like(target))
    (gradient,) = torch.autograd.grad(loss, logits)
    return {"dice/loss": loss.detach(), "dice/grad": gradient}


def _poly(want: Arrays) -> Arrays:
    rates = [poly_rate(i, 1000) for i in want["poly/iter"].tolist()]
    return {"poly/lr_max1000_base1e-3": torch.tensor(rates, dtype=torch.float64)}


def _counts(want: Arrays) -> Arrays:
    pred, target = want["iou/pred"], want["iou/target"]
    inter, union = episode_counts(pred == 1, target == 1, target == 255)
    kept = target[target != 255]
    areas = [int((kept != 1).sum()), int((kept == 1).sum())]
    return {"iou/intersection": torch.tensor(inter).float(), "iou/union": torch.tensor(union).float(),
            "iou/target_area": torch.tensor(areas).float()}


def _prior(want: Arrays) -> Arrays:
    support, masks = want["ppg5/support_feat"], want["ppg5/support_mask"]
    (b, k), side = support.shape[:2], want["ppg5/fg_corr"].shape[-1]
    prototypes = prior_prototypes(support.flatten(0, 1), masks.flatten(0, 1)[:, 0]).unflatten(0, (b, k))
    shots: ShotPriors = prior_masks(want["ppg5/query_feat"], prototypes, side)
    return {"ppg5/fg_corr": shots.foreground, "ppg5/bg_corr": shots.background, "ppg5/corr_norm": shots.difference}


def _refinement(want: Arrays) -> Arrays:
    names = ("sup_mem", "qry_fg_mem", "qry_ae_mem")
    support, noisy, clean = (want[f"imr/{n}"].clone().requires_grad_() for n in names)
    b = len(noisy)
    prototypes = pool(support, want["imr/sup_mask"][:, 0]).unflatten(0, (b, -1))
    found: Arrays = {}
    for version in ("v1", "v2"):
        fg, ae = (QueryMemory(features=m, mask=want[f"imr/prior_{n}"][:, 0])
                  for n, m in (("fg", noisy), ("ae", clean)))
        confirmed = support_agreement(noisy, prototypes)
        found["imr/sim_qry_sup"] = confirmed[:, None].detach()
        for i, after in enumerate(refine(fg, ae, confirmed, rounds=3, version=version), start=1):
            found[f"imr/{version}_iter{i}_mem"] = after.features.detach()
            found[f"imr/{version}_iter{i}_prior_ae"] = after.mask[:, None].detach()
        if version == "v1":
            gradients = torch.autograd.grad((want["imr/grad_probe"] * after.features).sum(), (support, noisy, clean))
            found |= {f"imr/grad_{n}": g for n, g in zip(names, gradients, strict=True)}
    return found


def _validation(want: Arrays) -> Arrays:
    side = int(want["val/size"])
    image, label = want["val/image"].numpy().astype(np.float32), want["val/label"].numpy()
    back = resize(want["val/logits"], (label.shape[0], label.shape[1]))
    return {"val/image_out": torch.from_numpy(linear(image, (side, side))).permute(2, 0, 1),
            "val/label_out": torch.from_numpy(nearest(label, (side, side)).astype(np.int64)),
            "val/logits_at_original_size": back}


def _augmentation(want: Arrays) -> Arrays:
    found: Arrays = {}
    image, label = want["train/image"].numpy().astype(np.float32), want["train/label"].numpy()
    seeds = {int(k.removeprefix("train/seed").split("_")[0]) for k in want if k.startswith("train/seed")}
    for seed in sorted(seeds):
        rng = random.Random(seed)
        made = SemsegAugmentation(crop=want[f"train/seed{seed}_image"].shape[-1])(image, label, rng)
        found[f"train/seed{seed}_image"] = torch.from_numpy(made[0].copy()).permute(2, 0, 1)
        found[f"train/seed{seed}_label"] = torch.from_numpy(made[1].astype(np.int64))
        found[f"train/seed{seed}_next_random"] = torch.tensor(rng.random(), dtype=torch.float64)
    return found


def _seeds(want: Arrays) -> Arrays:
    bases = list(islice(base_seeds(321), len(want["loader/base_seeds_after_321"])))
    rows, workers = want["loader/seed321_2workers_rows"], 2
    drawn = []
    for base in bases[: len(rows)]:
        rngs = [random.Random(base + w) for w in range(workers)]
        drawn.append([[rngs[i % workers].getrandbits(30), base + i % workers, i] for i in range(rows.shape[1])])
    return {"loader/base_seeds_after_321": torch.tensor(bases), "loader/seed321_2workers_rows": torch.tensor(drawn)}
