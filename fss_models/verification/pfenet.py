"""PFENet's golden cases: inference with one shot and K, at ResNet and VGG, and training in batch mode."""

from __future__ import annotations

import torch
from torch import Tensor

from fss_models.clip import Clip, Features, Memory
from fss_models.methods.pfenet.config import PfenetConfig
from fss_models.methods.pfenet.model import Pfenet
from fss_models.prior_guided.blocks import pixel_cross_entropy
from fss_models.prior_guided.maps import prior, resize_aligned
from fss_models.prior_guided.pairs import gather_shots
from fss_models.verification import prior_guided as cases
from fss_models.verification.prompting import Comparison, GoldenCase, case_runner, total
from fss_models.verification.recorder import Recorder


def build(case: GoldenCase) -> Pfenet:
    """Build the case's model with its values, in evaluation mode."""
    about = case.config
    drop = {} if "dropout" not in about else {"feature_dropout": about["dropout"], "head_dropout": about["dropout"]}
    config = PfenetConfig(scales=tuple(about["ppm_scales"]), aux_weight=about.get("aux_weight", 1.0), **drop)
    model = Pfenet(preset="golden", config=config, trunk=cases.case_trunk(case))
    cases.load_decoder(case, model)
    model.set_trainable()
    return model.eval()


def _infer(to: Comparison, case: GoldenCase) -> None:
    clip, model = cases.case_clip(case), build(case)
    kept = cases.CallRecorder(model, "decide")
    with torch.no_grad(), Recorder(model=model) as record:
        named = model.losses(clip)
        to.add(_forward(model, clip, record, *kept.given[-1]) | _supports(model, clip, record))
    to.add(_losses(model, clip, record, named))
    cases.compare_decision(to, case, model.to_image(record.got["model.decoder"][0][0]))


def _forward(
    model: Pfenet, clip: Clip, record: Recorder, memory: Memory, features: Features, pairs: Tensor
) -> dict[str, Tensor]:
    """Inputs and outputs of the parts by official name; the arguments of `decide` come last."""
    (b, k, _), got, grid = clip.shape, record.got, model.grid(features)
    shots, pair, shot = model.shot_priors(memory, features, pairs)
    raw = prior(gather_shots(memory, pair, shot)["top"], features.maps["top"][pairs[pair, 1]])
    masks = resize_aligned(clip.prompts.masks.flatten(0, 1)[:, None], grid)
    _, prototype, mean = record.given["model.decoder"][-1]
    found = {"proto/mean": prototype[..., None, None], "prior/mean": mean, "head/res1": got["model.decoder.res1"][-1],
             "head/res2": got["model.decoder.res2"][-1], "head/logits_grid": got["model.decoder.cls"][-1]}
    for name, values in (("proto/support", memory.tensors["prototypes"][..., None, None]),
                         ("prior/raw", raw.unflatten(0, (b, k))), ("prior/shot", shots.unflatten(0, (b, k))),
                         ("mask/support", masks.unflatten(0, (b, k)))):
        found |= cases.shot_outputs(name, values)
    for i in range(len(model.decoder.init_merge)):
        found |= {f"scale{i}/init": got[f"model.decoder.init_merge.{i}"][-1],
                  f"scale{i}/merged": got[f"model.decoder.beta_conv.{i}"][-1],
                  f"scale{i}/logits": got[f"model.decoder.inner_cls.{i}"][-1]}
    return found


def _supports(model: Pfenet, clip: Clip, record: Recorder) -> dict[str, Tensor]:
    """The trunk's maps and the reduced ones, query and supports apart. Official layer4 is masked a second time later.
    """
    b, k, _ = clip.shape
    features = model.encode(clip.images)
    maps, grid = features.maps, model.grid(features)
    mid, high = resize_aligned(maps["mid"], grid), maps["high"]
    masks = resize_aligned(clip.prompts.masks.flatten(0, 1)[:, None], high.shape[-2:])
    top = model.backbone.top(high[: b * k] * masks)
    found = {"backbone/query_layer2": mid[b * k :], "backbone/query_layer3": high[b * k :],
             "backbone/query_layer4": maps["top"][b * k :], "reduced/query": record.got["model.decoder.down_query"][-1]}
    for name, values in (("layer2", mid[: b * k]), ("layer3", high[: b * k]), ("layer4_masked", top)):
        each = cases.shot_outputs("", values.unflatten(0, (b, k)))
        found |= {f"backbone/support{shot}_{name}": value for shot, value in each.items()}
    return found | cases.shot_outputs("reduced/support", record.got["model.decoder.down_supp"][-1].unflatten(0, (b, k)))


def _losses(model: Pfenet, clip: Clip, record: Recorder, named: dict[str, Tensor]) -> dict[str, Tensor]:
    truth, scales = model.target_labels(clip), record.got["model.decoder"][-1][1]
    found = {"loss/main": named["mask"], "loss/aux": named["aux"], "loss/total": total(named)}
    return found | {f"loss/aux_scale{i}": pixel_cross_entropy(model.to_image(s), truth) for i, s in enumerate(scales)}


def _train(to: Comparison, case: GoldenCase) -> None:
    about, model = case.config, build(case).train()
    kept = cases.CallRecorder(model, "decide")
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], momentum=about["momentum"],
                                lr=about["base_lr"], weight_decay=about["weight_decay"])

    def seen(record: Recorder, clip: Clip, named: dict[str, Tensor]) -> dict[str, Tensor]:
        return _losses(model, clip, record, named) | _forward(model, clip, record, *kept.given[-1])

    cases.run_training(to, case, model, {"sgd": (optimiser, cases.poly(about))}, seen,
                       lambda record: model.to_image(record.got["model.decoder"][-1][0]))


run_case = case_runner(_infer, _train)
