"""FCP's golden cases: inference, K shots both ways, training with and without dropout, metrics, full size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from fss_models import losses as plain
from fss_models.clip import Clip, Features
from fss_models.methods.fcp import losses as terms
from fss_models.methods.fcp.config import FcpConfig
from fss_models.methods.fcp.encoder import FcpEncoder
from fss_models.methods.fcp.model import Fcp
from fss_models.methods.fcp.official import RULES, implied
from fss_models.prior_guided.maps import masked_mean, resize_aligned
from fss_models.prior_guided.pairs import clip_pairs
from fss_models.prototype_prompts.pseudo_masks import pseudo_mask_quality
from fss_models.verification import prompting as cases
from fss_models.verification.figures import digest
from fss_models.verification.frame import GoldenCheck
from fss_models.verification.recorder import Recorder


def build(case: cases.GoldenCase, **settings: Any) -> Fcp:
    """Build the case's model with its values, in evaluation mode."""
    drop = case.config.get("attn_drop_out", 0.0)
    config = FcpConfig(**implied(case.model), attention_dropout=drop, **settings)
    model = Fcp(preset="golden", config=config, parts=case.parts())
    case.load_encoder(model, RULES)
    model.set_trainable()
    return model.eval()


def _infer(to: cases.Comparison, case: cases.GoldenCase) -> None:
    if case.shots > 1:
        _many_shots(to, case)
        return
    model, clip = build(case), case.clip()
    with Recorder(encoder=model.encoder, sam=model.sam) as record:
        named = model.losses(clip)
    features, backbone = cases.backbone_outputs(model, clip)
    to.add(backbone | {"proto/layer4_mask_pooled_unused": _pooled_top(model, features, clip)})
    to.add(forward_outputs(record, model, clip))
    to.add(_losses(record, model, clip, named))
    cases.compare_gradients(to, cases.total(named), model, RULES)
    logits = cases.sam_outputs(record, model)["sam/logits"][:, 0].detach()
    cases.compare_evaluation(to, case, logits)


def _many_shots(to: cases.Comparison, case: cases.GoldenCase) -> None:
    """Compare both sources of the support's SAM features: `official/` the first shot, `per_shot/` each shot itself."""
    clip = case.clip()
    b, k, _ = clip.shape
    for way, setting in (("official/", "first"), ("per_shot/", "each")):
        model = build(case, kshot_support_sam=setting)
        with Recorder(encoder=model.encoder, sam=model.sam) as record:
            features = model.encode(clip.images)
            seen = model.analyse(features, clip.prompts, clip_pairs(clip))
        shots = (b, k)
        sam = cases.sam_outputs(record, model)
        mean = seen.prediction.logits
        masks = torch.cat([mean.new_zeros(b * k, 0, *seen.conventional.shape[2:]), *seen.attention_masks], dim=1)
        found = {"prompt_vrp": seen.prompts.unflatten(0, shots), "mean_logits": mean[:, None],
                 "low_res_logits": sam["sam/low_res_logits"].unflatten(0, shots),
                 "logits": seen.shot_logits.unflatten(0, shots)[:, :, None],
                 "attention_masks": masks.flatten(2).unflatten(0, shots),
                 "conventional_masks": seen.conventional.unflatten(0, shots)}
        to.add(found, prefix=way)
        maps = features.maps["sam"]
        to.add({"sam/query_features": maps[b * k :], "sam/support_features": maps[: b * k].unflatten(0, shots)})
        cases.compare_evaluation(to, case, mean.detach(), f"{way}pred_mask")
        if way == "official/":
            truth, valid = model.truth(clip)
            loss = terms.object_loss(mean[:, None], truth, valid)
            to.add({"loss/prompt": loss})
            cases.compare_gradients(to, loss, model, RULES)
            cases.compare_evaluation(to, case, mean.detach())


def _train(to: cases.Comparison, case: cases.GoldenCase) -> None:
    """Compare training steps, with recorded dropout where the case has masks."""
    model = build(case).train()
    replay_dropout(model.encoder, cases.dropout_masks(case.outputs))

    def seen(record: Recorder, clip: Clip, named: dict[str, Tensor]) -> dict[str, Tensor]:
        return forward_outputs(record, model, clip) | _losses(record, model, clip, named)

    cases.train_case(to, case, model, RULES, seen)


def replay_dropout(encoder: FcpEncoder, masks: list[tuple[Tensor, float]]) -> None:
    """Give each dropout its recorded masks, in the released order; without any, nothing is dropped.

    The released order is reduce(query), reduce(support), support steps, query steps, matching; we reduce the support
    first.
    """
    layers = [*encoder.support_steps, *encoder.query_steps, encoder.match_cross]
    encoder.reduce.dropout = cases.RecordedDropout([masks[1], masks[0]] if masks else [])
    for i, layer in enumerate(layers, start=2):
        layer.dropout = cases.RecordedDropout(masks[i : i + 1])


def _pooled_top(model: Fcp, features: Features, clip: Clip) -> Tensor:
    """The mean of layer4 under each support mask, which the official code computes and does not use."""
    grid, support = (model.sam.grid, model.sam.grid), len(clip.references)
    masks = F.interpolate(clip.prompts.masks.flatten(0, 1)[:, None], size=grid)
    return masked_mean(resize_aligned(features.maps["top"][:support], grid), masks)[..., None, None]


def forward_outputs(record: Recorder, model: Fcp, clip: Clip) -> dict[str, Tensor]:
    """Inputs and outputs of the sub-modules by official name. Our call order is support first, then query."""
    got, given, steps = record.got, record.given, model.config.steps
    guide_sam, guide_res = given["encoder.guide_sam"], given["encoder.guide_res"]
    grid = guide_sam[0][2].shape[-2:]
    place = model.encoder._positions(guide_sam[0][2]).t().unflatten(1, grid).expand(len(clip.targets), -1, -1, -1)
    maps = got["sam.model.image_encoder.neck"][0] if "sam.model.image_encoder.neck" in got else None
    support = len(clip.references)
    found = {
        "mask/support_grid": guide_sam[0][2], "pseudo/conventional": guide_sam[1][2],
        "mask/query_grid": F.interpolate(clip.target_masks, size=grid),
        "res/support_reduced": got["encoder.reduce"][0], "res/query_reduced": got["encoder.reduce"][1],
        "sam/support_projected": got["encoder.project"][0].relu(),
        "sam/query_projected": got["encoder.project"][1].relu(),
        "proto/res_mask_pooled": guide_res[0][1][..., None, None],
        "proto/sam_mask_pooled": guide_sam[0][1][..., None, None],
        "pe/query": place, "pe/support": place,
        "guided/sam_support": got["encoder.guide_sam"][0], "guided/res_support": got["encoder.guide_res"][0],
        "guided/res_query": got["encoder.guide_res"][1],
        "match/tokens": got["encoder.match_cross"][0][0], "match/attn": got["encoder.match_cross"][0][1],
        "match/self_attn": got["encoder.match_self"][0][1], "prompt/vrp": got["encoder.match_self"][0][0],
        "sam/sparse_embeddings": got["encoder.match_self"][0][0],
    }
    if maps is not None:
        found |= {"sam/support_features": maps[:support], "sam/query_features": maps[support:]}
    for t in range(steps):
        for side in ("support", "query"):
            tokens, seen = got[f"encoder.{side}_steps.{t}"][0]
            found |= {f"{side}/tokens_step{t + 1}": tokens, f"{side}/attn_step{t + 1}": seen}
        found[f"guided/sam_query_step{t + 1}"] = got["encoder.guide_sam"][t + 1]
        if t:
            found[f"pseudo/attention_step{t}"] = guide_sam[t + 1][2]
    return found | cases.sam_outputs(record, model)


def _losses(record: Recorder, model: Fcp, clip: Clip, named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every loss and its parts, divided by their weights."""
    about, steps = model.config, model.config.steps
    bce, dice = (named[k] / about.prompt_weight for k in ("mask", "dice"))
    found = {"loss/prompt_bce": bce, "loss/prompt_dice": dice, "loss/prompt": bce + dice,
             "loss/guide": named["guide"] / about.guide_weight, "loss/ortho": named["ortho"] / about.ortho_weight,
             "loss/total": cases.total(named)}
    for t in range(steps):
        for side in ("support", "query"):
            seen = record.got[f"encoder.{side}_steps.{t}"][0][1]
            found[f"loss/ortho_{side}_step{t + 1}"] = terms.ortho_term(seen)
    for t in range(1, steps):
        mask = record.given["encoder.guide_sam"][t + 1][2]
        truth = F.interpolate(clip.target_masks, size=mask.shape[-2:])
        valid = torch.ones_like(truth, dtype=torch.bool)
        name = f"loss/guide_step{t}"
        found |= {name: terms.object_loss(mask, truth, valid), f"{name}_dice": plain.dice(mask, truth, valid),
                  f"{name}_bce": plain.cross_entropy(mask, truth, valid)}
    return found


def _pseudo_masks(have: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Quality of the masks as pseudo masks, in percent."""
    found = pseudo_mask_quality(have["pred"] == 1, have["gt"] == 1, have["class_id"],
                                have["class_ids_of_interest"].tolist())
    return {f"pseudo_{k}_percent": torch.tensor(v * 100, dtype=torch.float64) for k, v in vars(found).items()}


def _full_size(folder: Path, name: str, case: dict[str, Any]) -> Iterator[GoldenCheck]:
    """Compare the token encoder at real size; its weights and inputs are drawn from numpy's streams."""
    want = load_file(folder / name / "outputs.safetensors")
    _, tokens, width = want["prompt/vrp"].shape
    masks = [k for k in want if k.startswith("pseudo/attention_step")]
    grid = want[masks[0]].shape[-1]
    config = FcpConfig(steps=len(masks) + 1, support_tokens=tokens, query_tokens=tokens)
    encoder = FcpEncoder(config, channels=1, width=width).eval()
    cases.load_drawn(encoder, RULES, case.get("weight_seed", cases.WEIGHT_SEED))
    f_q, f_s, g_q, g_s, prior, p_res, p_sam, mask = _drawn_inputs(width, grid, case.get("input_seed", cases.INPUT_SEED))
    prototypes = {"res": p_res, "sam": p_sam}
    with torch.no_grad():
        lift = {"res": encoder.guide_res.lift, "sam": encoder.guide_sam.lift}
        support = encoder.cover({"res": lift["res"](f_s), "sam": lift["sam"](g_s)}, prototypes, mask)
        query = encoder.query({"res": lift["res"](f_q), "sam": lift["sam"](g_q)}, support.tokens, prototypes, prior)
    found = {"prompt/vrp": query.prompts, "digest/vrp": digest(query.prompts),
             "digest/x_q": digest(f_q), "digest/x_s": digest(f_s)}
    for side, maps in (("support", support.attention), ("query", query.attention)):
        for t, seen in enumerate(maps, start=1):
            found |= {f"{side}/attn_step{t}_tokens_0_49": seen[:, [0, tokens - 1]],
                      f"digest/{side}_attn_step{t}": digest(seen)}
    found |= {f"pseudo/attention_step{t}": m for t, m in enumerate(query.masks, start=1)}
    to = cases.Comparison(name, want)
    to.add(found)
    yield from to.checks()


def _drawn_inputs(width: int, grid: int, seed: int) -> list[Tensor]:
    """F_Q, F_S, G'_Q, G'_S, prior, prototypes [1, D] of backbone and SAM, support mask (an ellipse)."""
    stream = np.random.RandomState(seed)

    def normal(*shape: int) -> Tensor:
        return torch.from_numpy(stream.standard_normal(shape).astype(np.float32))

    maps = [0.5 * normal(1, width, grid, grid).abs() for _ in range(4)]
    prior = torch.from_numpy(stream.uniform(size=(1, 1, grid, grid)).astype(np.float32))
    p_res, p_sam = 0.5 * normal(1, width, 1, 1).abs(), normal(1, width, 1, 1)
    y, x = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    mask = (((y - 30) / 15) ** 2 + ((x - 36) / 11) ** 2 <= 1).float()[None, None]
    return [*maps, prior, p_res.flatten(1), p_sam.flatten(1), mask]


run_case = cases.case_runner(_infer, _train, apart={"metrics": partial(cases.metrics_case, more=_pseudo_masks),
                                                    "fullsize": _full_size})
