"""SSP's golden cases: inference with one shot and K, the choice of the top pixels, and training."""

from __future__ import annotations

import torch
from torch import Tensor

from fss_models.clip import Clip
from fss_models.methods.ssp.config import SspConfig
from fss_models.methods.ssp.model import Ssp
from fss_models.methods.ssp.official import name_of
from fss_models.methods.ssp.self_support import SspDecision, SspRound
from fss_models.prior_guided.segmenter import shot_mean
from fss_models.verification import prior_guided as cases
from fss_models.verification.prompting import Comparison, GoldenCase, case_runner, total
from fss_models.verification.recorder import Recorder


def build(case: GoldenCase) -> Ssp:
    """Build the case's model with its values, in evaluation mode."""
    about = case.config
    config = SspConfig(refine=about["refine"], support_weight=about.get("support_weight", 0.2))
    model = Ssp(preset="golden", config=config, trunk=cases.case_trunk(case, dilation="torchvision", signed=True))
    model.set_trainable()
    return model.eval()


def _infer(to: Comparison, case: GoldenCase) -> None:
    clip, model = cases.case_clip(case), build(case)
    kept = cases.CallRecorder(model, "decide")
    with torch.no_grad():
        named = model.losses(clip)
        early = model.backbone.early(clip.targets.pixels)
        to.add({"backbone/query_layer1": early, "backbone/query_layer2": model.backbone.after_early(early)[0]})
        to.add(_forward(model, clip, kept, named))
    cases.compare_decision(to, case, model.to_image(kept.got[-1].logits))


def _forward(model: Ssp, clip: Clip, kept: cases.CallRecorder, named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inputs, outputs and losses by official name."""
    (memory, features, _), found, (b, k, _) = kept.given[-1], kept.got[-1], clip.shape
    maps, per_shot = features.maps["high"], memory.tensors["prototypes"]
    mean = shot_mean(per_shot, memory.counts)[..., None, None]
    outputs = {"features/query": maps[b * k :], "proto/fg": mean[:, 0], "proto/bg": mean[:, 1]}
    outputs |= cases.shot_outputs("features/support", maps[: b * k].unflatten(0, (b, k)))
    for shot, (fg, bg) in enumerate(p.unbind(1) for p in per_shot.unbind(1)):
        outputs |= {f"proto/support{shot}_fg": fg, f"proto/support{shot}_bg": bg}
    own = model.match_itself(maps[b * k :], model.target_labels(clip))
    return outputs | {"self_logits/query": own} | _rounds(model, found) | _losses(named)


def _rounds(model: Ssp, found: SspDecision) -> dict[str, Tensor]:
    outputs = {"match/out0": found.start, "match/out1": found.first.logits,
               "logits_first": model.to_image(found.first.logits)} | _round("ssp1", found.first)
    if found.second:
        outputs |= {"match/out2": found.logits, "match/out2_before_mix": found.second.logits,
                    "logits_refined": model.to_image(found.logits)} | _round("ssp2", found.second)
    return outputs


def _round(name: str, one: SspRound) -> dict[str, Tensor]:
    own = one.support
    return {f"{name}/probability": own.probability, f"{name}/count_fg_bg": own.counts, f"{name}/fg": own.foreground,
            f"{name}/bg": own.background, f"{name}/bg_local": own.local, f"{name}/fg_mixed": one.foreground,
            f"{name}/bg_mixed": one.background}


def _losses(named: dict[str, Tensor]) -> dict[str, Tensor]:
    refined = {"loss/query_refined": named["mask"]} if "mask" in named else {}
    return refined | {"loss/query_first": named["first"], "loss/query_self": named["query"],
                      "loss/support_self_weighted": named["support"], "loss/total": total(named)}


def _train(to: Comparison, case: GoldenCase) -> None:
    about, model = case.config, build(case).train()
    kept = cases.CallRecorder(model, "decide")
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], momentum=about["momentum"],
                                lr=about["lr"], weight_decay=about["weight_decay"])

    def rate(step: int) -> float:
        return float(about["lr"] * 0.1 ** sum(step > end for end in about["lr_decay_iters"]))

    def seen(_record: Recorder, clip: Clip, named: dict[str, Tensor]) -> dict[str, Tensor]:
        return _forward(model, clip, kept, named)

    cases.run_training(to, case, model, {"sgd": (optimiser, rate)}, seen,
                       lambda _: model.to_image(kept.got[-1].logits), name_of)


run_case = case_runner(_infer, _train)
