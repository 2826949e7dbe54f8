"""BAM's golden cases: inference with one and five shots, training, the base learner's own training, ASPP alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fss_models.base_learner.learner import BaseLearner, LabelledPhotos
from fss_models.clip import Clip, Features
from fss_models.methods.bam.config import BamConfig
from fss_models.methods.bam.decoder import Aspp
from fss_models.methods.bam.model import Bam, BamForward
from fss_models.methods.bam.official import RULES
from fss_models.prior_guided.blocks import pixel_cross_entropy
from fss_models.prior_guided.maps import masked_mean, prior, resize_aligned
from fss_models.prior_guided.pairs import clip_pairs, real_rows
from fss_models.prototype_prompts.official import rename
from fss_models.verification import base_learner as cases
from fss_models.verification.prior_guided import case_clip, case_trunk, compare_decision
from fss_models.verification.prompting import Comparison, GoldenCase, case_runner


def build(case: GoldenCase, **settings: Any) -> Bam:
    """Build the case's model with its values, in evaluation mode."""
    drop = {} if "dropout" not in case.config else {"feature_dropout": 0.0, "head_dropout": 0.0}
    config = BamConfig(width=case.config["reduce_dim"], shots=case.config["shot"], **drop | settings)
    model = Bam(preset="golden", config=config, trunk=case_trunk(case), head=cases.case_head(case))
    return cases.load_model(case, model, RULES)


def _infer(to: Comparison, case: GoldenCase) -> None:
    model, clip = build(case), case_clip(case)
    with torch.no_grad():
        features = model.encode(clip.images)
        found = model.forward_pairs(model.memorise(features, clip.prompts), features, clip_pairs(clip))
        to.add(_encoded(model, features, clip))
        to.add(_outputs(model, features, clip, found))
        compare_decision(to, case, model.to_image(found.joined.final))


def _encoded(model: Bam, features: Features, clip: Clip) -> dict[str, Tensor]:
    """What depends on one image alone, by official name; a shot's entries have its number."""
    b, k, _ = clip.shape
    query = torch.arange(b * k, len(features))
    maps = {name: features.maps[level] for name, level in (("layer2", "mid"), ("layer3", "high"), ("layer4", "top"))}
    found = {f"backbone/query_{name}": v[query] for name, v in maps.items()}
    found |= {"reduced/query": model.decoder.down_query(model.fused(features, query)),
              "gram/query": model.scenes(features, query)}
    _, image, masks = real_rows(clip.prompts)
    small = resize_aligned(masks, model.grid(features))
    reduced = model.decoder.down_supp(model.fused(features, image))
    top = model.backbone.top(maps["layer3"][image] * small)
    each = {"backbone/support{}_layer2": maps["layer2"][image], "backbone/support{}_layer3": maps["layer3"][image],
            "backbone/support{}_layer4_masked": top, "mask/support{}": small, "reduced/support{}": reduced,
            "proto/support{}": masked_mean(reduced, small)[..., None, None],
            "gram/support{}": model.scenes(features, image),
            "prior/raw{}": prior((top * small).flatten(2).transpose(1, 2),
                                 maps["layer4"][query].repeat_interleave(k, dim=0))}
    return found | {name.format(i): v.unflatten(0, (b, k))[:, i] for name, v in each.items() for i in range(k)}


def _outputs(model: Bam, features: Features, clip: Clip, found: BamForward) -> dict[str, Tensor]:
    """What depends on the pair, by official name."""
    b, k, _ = clip.shape
    shots = found.shot_priors.unflatten(0, (b, k))
    return {
        **{f"prior/shot{i}": shots[:, i] for i in range(k)}, "prior/mixed": found.prior,
        "proto/mixed": found.prototype[..., None, None],
        "meta/init_merge": found.meta.merged, "meta/aspp": found.meta.aspp, "meta/res2": found.meta.refined,
        **cases.ensemble_outputs(model, features.maps["base"][b * k :], found.meta.logits, found.shots, found.joined),
    }


def _train(to: Comparison, case: GoldenCase) -> None:
    model, about = build(case).train(), case.config
    model.base_head.eval()  # its dropout is 0 in the case
    named = {rename(n, RULES, forward=False): p for n, p in model.named_parameters() if p.requires_grad}
    optimiser = torch.optim.SGD([{"params": list(named.values()), "factor": about["lr_scale"]}], lr=about["base_lr"],
                                momentum=about["momentum"], weight_decay=about["weight_decay"])

    def forward(step: str) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        clip = case_clip(case, step)
        features = model.encode(clip.images)
        memory = model.memorise(features, clip.prompts)
        found = model.forward_pairs(memory, features, clip_pairs(clip), case.inputs[step + "base_class_index"])
        final, truth = model.to_image(found.joined.final), model.target_labels(clip)
        base = model.to_image(features.maps["base"][len(clip.references) :])
        losses = {"loss/final": pixel_cross_entropy(final, truth),
                  "loss/meta": model.config.meta_weight * pixel_cross_entropy(model.to_image(found.meta.logits), truth),
                  "loss/base": pixel_cross_entropy(base, cases.base_labels(case, step))}
        k = clip.shape[1]
        proto = {f"proto/support{i}": memory.tensors["prototype"][:, i, :, None, None] for i in range(k)}
        outputs = _outputs(model, features, clip, found) | losses | proto | {"logits": final}
        return torch.stack(list(losses.values())).sum(), outputs, final

    cases.train_steps(to, case, named, optimiser, [about["lr_scale"]] * 9, forward)


def _train_base(to: Comparison, case: GoldenCase) -> None:
    """Two steps of PSPNet, whose head learns faster than its trunk."""
    model, about = BaseLearner(case_trunk(case).backbone, cases.case_head(case)), case.config
    model.load_trainable_state(case.model)
    model.train()
    model.head.cls[3].eval()  # dropout is 0 in the case
    (fast,) = model.parameter_groups()
    named = {k: p for part in (model.backbone, model.head) for k, p in part.named_parameters()}
    optimiser = torch.optim.SGD([{"params": list(model.backbone.parameters()), "factor": 1.0},
                                 {"params": fast.parameters, "factor": fast.factor}], lr=about["base_lr"],
                                momentum=about["momentum"], weight_decay=about["weight_decay"])

    def forward(step: str) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        pixels = case.inputs[step + "query_img"]
        state = {k: v.clone() for k, v in model.state_dict().items()}
        with torch.no_grad():
            logits = model(pixels)
        model.load_state_dict(state)  # that pass moved the statistics too
        (loss,) = model.losses(LabelledPhotos(pixels=pixels, labels=cases.base_labels(case, step))).values()
        return loss, {}, logits

    cases.train_steps(to, case, named, optimiser, [1.0, fast.factor, fast.factor], forward)
    for name, value in model.trainable_state().items():
        cases.compare_relative(to, f"step2/buffer_after/{name}", value)


def _aspp(to: Comparison, case: GoldenCase) -> None:
    layers = Aspp(case.inputs["x"].shape[1])
    layers.load_state_dict({k.removeprefix("ASPP_meta."): v for k, v in case.model.items()})
    with torch.no_grad():
        to.add({"meta/aspp": layers(case.inputs["x"])})


run_case = case_runner(_infer, _train, train_base_learner=_train_base, unit_aspp=_aspp)
