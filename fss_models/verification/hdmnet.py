"""HDMNet's golden cases: inference with one and five shots, and training with AdamW."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fss_models.clip import Clip, Features
from fss_models.methods.hdmnet.config import HdmnetConfig
from fss_models.methods.hdmnet.losses import distillation
from fss_models.methods.hdmnet.model import Hdmnet, HdmnetForward, SupportRows
from fss_models.methods.hdmnet.official import RULES
from fss_models.prior_guided.blocks import pixel_cross_entropy
from fss_models.prior_guided.maps import resize_aligned
from fss_models.prior_guided.pairs import clip_pairs, real_rows
from fss_models.prototype_prompts.official import rename
from fss_models.verification import base_learner as cases
from fss_models.verification.prior_guided import case_clip, case_trunk, compare_decision
from fss_models.verification.prompting import Comparison, GoldenCase, case_runner

MAPS = {"layer2": "mid", "layer3": "high", "layer4": "top", "base": "described"}  # official name -> ours


def build(case: GoldenCase, **settings: Any) -> Hdmnet:
    """Build the case's model with its values, in evaluation mode."""
    about = case.config
    drop = {} if "dropout" not in about else {"feature_dropout": 0.0, "dropout": 0.0}
    config = HdmnetConfig(width=about["reduce_dim"], embed=about["embed_dim"], shots=about["shot"], **drop | settings)
    model = Hdmnet(preset="golden", config=config, trunk=case_trunk(case), head=cases.case_head(case))
    return cases.load_model(case, model, RULES)


def _infer(to: Comparison, case: GoldenCase) -> None:
    model, clip = build(case), case_clip(case)
    with torch.no_grad():
        features, support, found = _forward(model, clip)
        to.add(_outputs(model, features, clip, support, found))
        compare_decision(to, case, model.to_image(found.joined.final))


def _forward(model: Hdmnet, clip: Clip, own: Tensor | None = None) -> tuple[Features, SupportRows, HdmnetForward]:
    features = model.encode(clip.images)
    _, image, masks = real_rows(clip.prompts)
    support = model.describe_support(features.maps["pixels"][image], masks)
    found = model.forward_pairs(model.memorise(features, clip.prompts), features, clip_pairs(clip), own)
    return features, support, found


def _outputs(model: Hdmnet, features: Features, clip: Clip, support: SupportRows, found: HdmnetForward
             ) -> dict[str, Tensor]:
    """Every output of a forward pass by official name."""
    b, k, _ = clip.shape
    query = slice(b * k, None)
    outputs = {f"backbone/query_{n}": features.maps[own][query] for n, own in MAPS.items()}
    outputs |= {f"backbone/support_{n}": support.features.maps[own] for n, own in MAPS.items()}
    for i, (level, other) in enumerate(zip(found.levels, support.levels, strict=True)):
        outputs |= {
            f"level{i}/query": level.tokens, f"level{i}/support": other.tokens,
            f"level{i}/mask": support.masks[i], f"level{i}/similarity": resize_aligned(found.prior, level.size),
            f"match{i}/attended": found.matched.attended[i],
            f"match{i}/correlation": found.matched.correlation[i][:, 0],
            f"match{i}/fused": found.matched.fused[i], f"decode/level{i}": found.matched.decoded[i]}
    each = support.prototype.unflatten(0, (b, k))
    return outputs | {
        "reduced/query": found.reduced, "reduced/support": support.reduced,
        "proto/per_shot": support.prototype[..., None, None], "proto/mean": each.mean(dim=1)[..., None, None],
        "prior/base_and_layer4": found.prior, "merged/query": found.merged, "merged/support": support.merged,
        "decode/sum": found.matched.decoded[0],
        **cases.ensemble_outputs(model, features.maps["base"][query], found.matched.logits, found.shots, found.joined),
    }


def _train(to: Comparison, case: GoldenCase) -> None:
    model, about = build(case).train(), case.config
    model.base_head.eval()  # its dropout is 0 in the case
    named = {rename(n, RULES, forward=False): p for n, p in model.named_parameters() if p.requires_grad}
    (others,) = model.parameter_groups()
    fast = {id(p) for p in others.parameters}
    slow = [p for p in named.values() if id(p) not in fast]
    groups = [{"params": slow, "factor": 1.0}, {"params": list(others.parameters), "factor": others.factor}]
    optimiser = torch.optim.AdamW(groups, lr=about["base_lr"], betas=tuple(about["betas"]),
                                  weight_decay=about["weight_decay"])

    def forward(step: str) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        clip = case_clip(case, step)
        features, support, found = _forward(model, clip, case.inputs[step + "base_class_index"])
        final, truth = model.to_image(found.joined.final), model.target_labels(clip)
        steps = distillation(found.matched.correlation[::-1], truth)
        losses = {"loss/final": pixel_cross_entropy(final, truth),
                  "loss/meta": pixel_cross_entropy(model.to_image(found.matched.logits), truth),
                  "loss/distil": torch.stack(steps).mean(),
                  "loss/base": pixel_cross_entropy(model.to_image(features.maps["base"][len(clip.references) :]),
                                                   cases.base_labels(case, step))}
        loss = torch.stack(list(losses.values())).sum()
        more = {f"loss/kl{i}": one for i, one in enumerate(steps)} | {"logits": final}
        more["loss/final_plus_meta"] = losses["loss/final"] + losses["loss/meta"]
        return loss, _outputs(model, features, clip, support, found) | losses | more, final

    cases.train_steps(to, case, named, optimiser, [1.0] + [others.factor] * 6, forward)


run_case = case_runner(_infer, _train)
