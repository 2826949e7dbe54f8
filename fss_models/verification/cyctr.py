"""CyCTR's golden cases: inference with one shot and K in every branch of the draw, and training with two optimisers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fss_models.clip import Clip
from fss_models.methods.cyctr.config import CyctrConfig
from fss_models.methods.cyctr.model import Cyctr
from fss_models.methods.cyctr.official import name_of
from fss_models.prior_guided.maps import prior
from fss_models.prior_guided.pairs import gather_shots
from fss_models.verification import prior_guided as cases
from fss_models.verification.prompting import Comparison, GoldenCase, case_runner, layer_outputs, total
from fss_models.verification.recorder import Recorder


def build(case: GoldenCase) -> Cyctr:
    """Build the case's model with its values, in evaluation mode."""
    about = case.config
    objects, others = about["rand_num"]
    drop = about.get("dropout", 0.1)
    config = CyctrConfig(object_tokens=objects, background_tokens=others, aux_weight=about.get("aux_weight", 1.0),
                         feature_dropout=drop, head_dropout=drop, transformer_dropout=drop,
                         transformer_lr=about.get("transformer_lr", 1e-4),
                         transformer_weight_decay=about.get("transformer_weight_decay", 1e-2))
    model = Cyctr(preset="golden", config=config, trunk=cases.case_trunk(case, dilation="torchvision"))
    cases.load_decoder(case, model, name_of)
    model.set_trainable()
    return model.eval()


def _replay(model: Cyctr, case: GoldenCase, step: str = "") -> None:
    """Give the model the case's draws and padding in place of its own."""
    drawn = [case.outputs[k] for k in sorted(case.outputs) if k.startswith(f"{step}sampling/perm")]
    factors = [float(case.outputs[k]) for k in sorted(case.outputs) if k.startswith(f"{step}sampling/scale")]
    padded = [case.inputs[f"{step}{side}_padding"] > 0 for side in ("query", "support")]
    replaced: Any = model
    replaced.permutation = lambda count, generator: drawn.pop(0)
    replaced.factor = lambda shots: factors.pop(0)
    replaced.padding = lambda truth, label: (padded[0], padded[1].flatten(0, 1))


def _infer(to: Comparison, case: GoldenCase) -> None:
    clip, model = cases.case_clip(case), build(case)
    _replay(model, case)
    kept = cases.CallRecorder(model, "decide")
    with torch.no_grad(), Recorder(model=model) as record:
        named = model.losses(clip)
        to.add(layer_outputs(model.encode(clip.images), len(clip.references)))
        to.add(_forward(model, clip, record, kept))
    to.add({"loss/main": named["mask"]})
    to.seen |= {k for k in case.outputs if k.startswith("sampling/")}
    cases.compare_decision(to, case, model.to_image(kept.got[-1][0]))


def _forward(model: Cyctr, clip: Clip, record: Recorder, kept: cases.CallRecorder) -> dict[str, Tensor]:
    """Inputs and outputs of the parts by official name."""
    memory, features, pairs, padded, _ = kept.given[-1]
    (b, k, _), got, given = clip.shape, record.got, record.given
    pair, shot = (torch.arange(b * k) // k, torch.arange(b * k) % k)
    raw = prior(gather_shots(memory, pair, shot)["top"], features.maps["top"][pairs[pair, 1]])
    _, prototype, mean, _, _ = given["model.decoder"][-1]
    per_shot = memory.tensors["prototypes"]
    query, last = "model.decoder.adjust_feature_qry", "model.decoder.merge_multi_lvl_sum"
    _, tokens, _ = model.describe(features, clip.prompts, model.padding(padded, padded)[1])
    found = {"reduced/query": got[query][-1], "reduced/support": got["model.decoder.adjust_feature_supp"][0],
             "merged/query": got["model.decoder.qry_merge_feat"][-1],
             "merged/support": got["model.decoder.supp_merge_feat"][0],
             "proto/mean": prototype[..., None, None], "proto/per_shot": per_shot.flatten(0, 1)[..., None, None],
             "prior/mean": mean, "transformer/out": got["model.decoder.transformer"][-1],
             "transformer/position": model.decoder.transformer.place(padded, prototype.shape[1]),
             "transformer/support_mask": tokens.object, "transformer/support_padding": tokens.padded,
             "transformer/query_padding": padded.flatten(1), "head/sum": got[last][-1],
             "head/reduce": got["model.decoder.merge_multi_lvl_reduce"][-1], "head/logits_grid": kept.got[-1][0]}
    for layer in range(model.config.layers):
        found |= _layer(record, layer)
    return found | cases.shot_outputs("prior/raw", raw.unflatten(0, (b, k)))


def _layer(record: Recorder, layer: int) -> dict[str, Tensor]:
    name = f"model.decoder.transformer.cross_layers.{layer}"
    before, drawn = record.given[name][-1]
    read, (own, places) = record.got[name][-1], record.got[f"model.decoder.transformer.qry_self_layers.{layer}"][-1]
    found = {"self_out": own, "self_sampling_locations": places[:, :, :, None], "before_cross": before,
             "sampled_keys": drawn.keys, "sampled_mask": drawn.object, "sampled_padding": drawn.padded,
             "scores": read.scores, "consistent": read.consistent, "attention": read.weights, "cross_out": read.result}
    return {f"layer{layer}/{k}": v for k, v in found.items()}


def _train(to: Comparison, case: GoldenCase) -> None:
    about, model = case.config, build(case).train()
    kept, auxiliary = cases.CallRecorder(model, "decide"), cases.CallRecorder(model.decoder, "query_prototypes")
    groups = model.parameter_groups()
    own = {id(p) for g in groups for p in g.parameters}
    sgd = torch.optim.SGD([p for p in model.parameters() if p.requires_grad and id(p) not in own], lr=about["base_lr"],
                          momentum=about["momentum"], weight_decay=about["weight_decay"])
    adamw = torch.optim.AdamW([{"params": list(g.parameters), "weight_decay": g.weight_decay} for g in groups])

    def seen(record: Recorder, clip: Clip, named: dict[str, Tensor]) -> dict[str, Tensor]:
        support = record.got["model.decoder.supp_cls"][-1].unflatten(0, clip.shape[:2])
        found = {f"aux/support{k}_logits_grid": v for k, v in enumerate(support.unbind(1))}
        return _forward(model, clip, record, kept) | found | {
            "aux/query_proto": auxiliary.got[-1][..., None, None], "loss/main": named["mask"],
            "loss/aux": named["aux"], "loss/total": total(named)}

    optimisers = {"sgd": (sgd, cases.poly(about)), "adamw": (adamw, lambda _: groups[0].lr)}
    cases.run_training(to, case, model, optimisers, seen, lambda _: model.to_image(kept.got[-1][0]), name_of,
                       before=lambda step: _replay(model, case, step))


run_case = case_runner(_infer, _train)
