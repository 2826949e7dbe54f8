"""VRP-SAM's golden cases: inference, K shots, training with and without dropout, prompt types, metrics, full size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from fss_models.clip import Clip
from fss_models.methods.vrp_sam.config import VrpSamConfig
from fss_models.methods.vrp_sam.encoder import VrpEncoder
from fss_models.methods.vrp_sam.model import VrpSam
from fss_models.methods.vrp_sam.official import RULES
from fss_models.methods.vrp_sam.simulate import RandomStreams, box_marks, draw_marks
from fss_models.prior_guided.pairs import clip_pairs
from fss_models.verification import prompting as cases
from fss_models.verification.figures import digest
from fss_models.verification.frame import GoldenCheck
from fss_models.verification.recorder import Recorder
from fss_models.verification.tolerances import EXACT


def build(case: cases.GoldenCase) -> VrpSam:
    """Build the case's model with its values, in evaluation mode."""
    tokens = len(case.model["transformer_decoder.supp_q_feat.weight"])
    model = VrpSam(preset="golden", config=VrpSamConfig(tokens=tokens, empty_mask="keep"),
                   parts=case.parts())
    case.load_encoder(model, RULES)
    model.set_trainable()
    return model.eval()


def _infer(to: cases.Comparison, case: cases.GoldenCase) -> None:
    """Compare inference with one shot or K, whose prompts are decoded together."""
    clip, model = case.clip(), build(case)
    with Recorder(encoder=model.encoder, sam=model.sam) as record:
        named = model.losses(clip)
    to.add(cases.backbone_outputs(model, clip)[1])
    to.add(forward_outputs(record, model, clip))
    to.add(_losses(named))
    cases.compare_gradients(to, cases.total(named), model, RULES)
    logits = cases.sam_outputs(record, model)["sam/logits"][:, 0].detach()
    for key in ("eval/pred_mask", "sam/pred_mask"):
        if key in case.outputs:
            cases.compare_evaluation(to, case, logits, key)


def _train(to: cases.Comparison, case: cases.GoldenCase) -> None:
    """Compare training steps, with recorded dropout where the case has masks."""
    model = build(case).train()
    replay_dropout(model.encoder, cases.dropout_masks(case.outputs))

    def seen(record: Recorder, clip: Clip, named: dict[str, Tensor]) -> dict[str, Tensor]:
        return forward_outputs(record, model, clip) | _losses(named)

    cases.train_case(to, case, model, RULES, seen)


def replay_dropout(encoder: VrpEncoder, masks: list[tuple[Tensor, float]]) -> None:
    """Give dropout its recorded masks; without any, nothing is dropped.

    The released code reduces the query first, we reduce the support first.
    """
    encoder.reduce.dropout = cases.RecordedDropout([masks[1], masks[0]] if masks else [])


def _prompt_types(to: cases.Comparison, case: cases.GoldenCase) -> None:
    """Compare each kind's simulated mask, and the model's outputs for the stored one."""
    clip, model = case.clip(), build(case)
    given = clip.prompts.masks[:, 0]
    kinds = sorted(key.split("/")[0] for key in case.outputs if key.endswith("/support_mask"))
    for kind in kinds:
        stored = case.outputs[f"{kind}/support_mask"]
        ours = {"mask": given, "box": box_marks(given)}.get(kind)
        if ours is None:
            ours = draw_marks(given, kind, RandomStreams.seeded(case.config["prompt_seed"]))
        to.compared(f"{kind}/support_mask", float((ours != stored).sum()), EXACT)
        prompts = replace(clip.prompts, masks=stored[:, None].float())
        with torch.no_grad():
            seen = model.analyse(model.encode(clip.images), prompts, clip_pairs(clip))
        to.add({"prompt_vrp": seen.query.tokens, "logits": seen.prediction.logits[:, None]}, prefix=f"{kind}/")
        if kind == "box":
            to.add({"xyxy_exclusive": _corners(ours)}, prefix="box/")


def _corners(boxes: Tensor) -> Tensor:
    """Corners (x0, y0, x1 + 1, y1 + 1) of filled rectangles [E, R, R]."""
    found = []
    for box in boxes:
        y, x = (box > 0).nonzero().unbind(1)
        found.append(torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]))
    return torch.stack(found).float()


def _losses(named: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"loss/prompt_bce": named["mask"], "loss/prompt_dice": named["dice"], "loss/prompt": cases.total(named)}


def forward_outputs(record: Recorder, model: VrpSam, clip: Clip) -> dict[str, Tensor]:
    """Inputs and outputs of the sub-modules by official name. Our call order is support first, then query."""
    got, given, (b, k, _) = record.got, record.given, clip.shape
    (_, prototype, mask), (_, _, prior) = given["encoder.guide"]
    place = model.encoder._place(mask)
    prompts, embedding = got["encoder.query_self"][0][0], got["sam.model.image_encoder.neck"][0]
    reduced = got["encoder.reduce"]
    found = {
        "mask/support_grid": mask, "pseudo/conventional": prior if k == 1 else prior.unflatten(0, (b, k)),
        "res/support_reduced": reduced[0], "res/query_reduced": reduced[1], "pe/query": place, "pe/support": place,
        "proto/res_mask_pooled": prototype[..., None, None],
        "guided/res_support": got["encoder.guide"][0], "guided/res_query": got["encoder.guide"][1],
        "prompt/vrp": prompts, "prompt/vrp_per_shot": prompts.unflatten(0, (b, k)),
        "sam/sparse_embeddings": prompts.unflatten(0, (b, k)).flatten(1, 2), "sam/query_features": embedding[b * k :],
        "sam/support_features": embedding[: b * k].unflatten(0, (b, k)) if k > 1 else embedding[:b],
    }
    for name in ("support_cross", "support_self", "query_cross", "query_self"):
        found[f"tokens/{name}"], found[f"attn/{name}"] = got[f"encoder.{name}"][0]
    return found | cases.sam_outputs(record, model)


def _full_size(folder: Path, name: str, case: dict[str, Any]) -> Iterator[GoldenCheck]:
    """Compare the token encoder at real size; its weights and inputs are drawn from numpy's streams."""
    want = load_file(folder / name / "outputs.safetensors")
    _, tokens, width = want["prompt/vrp"].shape
    grid = case.get("grid", 64)
    encoder = VrpEncoder(tokens=tokens, channels=1, width=width, dropout=0).eval()
    cases.load_drawn(encoder, RULES, case.get("weight_seed", cases.WEIGHT_SEED))
    stream = np.random.RandomState(case.get("input_seed", cases.INPUT_SEED))
    x_q, x_s = (0.5 * torch.from_numpy(stream.standard_normal((1, width, grid, grid)).astype(np.float32)).abs()
                for _ in range(2))
    with torch.no_grad():
        first = encoder.read(x_s, encoder.tokens.weight[None], encoder.support_cross, encoder.support_self)
        prompts = encoder.read(x_q, first.tokens, encoder.query_cross, encoder.query_self).tokens
    to = cases.Comparison(name, want)
    to.add({"prompt/vrp": prompts} | {f"digest/{k}": digest(v) for k, v in
                                      (("vrp", prompts), ("x_q", x_q), ("x_s", x_s))})
    yield from to.checks()


run_case = cases.case_runner(_infer, _train, apart={"metrics": cases.metrics_case, "fullsize": _full_size},
                             prompt_types=_prompt_types)
