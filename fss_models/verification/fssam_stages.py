"""Our implementation's tensors at each stage of an episode, under the names of the golden files.

Each stage gets our own results of the earlier ones. Only the attention layers are also run on recorded inputs, so that
a deviation shows where it arises.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fss_models.clip import Clip, Features, Memory
from fss_models.methods.fssam.attention import calibrated_attention, memory_keys, rotate
from fss_models.methods.fssam.model import Fssam
from fss_models.methods.fssam.ops import pool, resize, squared_dice
from fss_models.methods.fssam.refine import QueryMemory, agreement, refine, support_agreement
from fss_models.sam2_core.core import Maps, take
from fss_models.verification.recorder import Recorder

Found = dict[str, Tensor]


def observe(model: Fssam, clip: Clip, want: Found) -> Found:
    """Compute all quantities of a case; `want` holds the recorded inputs of the attention layers."""
    b, k, _ = clip.shape
    features = model.encode(clip.images)
    support, query = (take(features.maps, torch.arange(*span)) for span in ((0, b * k), (b * k, b * k + b)))
    masks, rows = clip.prompts.masks, torch.arange(b)
    memory = model.memorise(features, clip.prompts)
    found = _features(model, support, query) | _priors(model, memory, rows, query, masks)
    fg, ae = model.shot_priors(memory.tensors, rows, query).mean()
    for name, maps, prompt in (("sup_gt", support, masks.flatten(0, 1)), ("qry_fg", query, fg), ("qry_ae", query, ae)):
        found |= _memory(model, f"mem/{name}", maps, prompt)
    found |= _refinement(model, found, masks, fg, ae)
    found |= _attention_inputs(model, memory, rows, query, masks)
    for i, layer in enumerate(model.core.sam.memory_attention.layers):
        if f"scma/layer{i}/k_in" in want:
            found |= _attention_layer(layer.cross_attn_image, f"scma/layer{i}", want)
    return found | _end_to_end(model, clip, memory, features)


def _features(model: Fssam, support: Maps, query: Maps) -> Found:
    found = {"dino/query_last": query["prior"], "dino/support_last": support["prior"]}
    for who, maps in (("query", query), ("support", support)):
        found |= {f"feat/{who}_level{i}": _sequence(maps[f"f{i}"]) for i in range(3)}
        found[f"feat/{who}_pos2"] = _sequence(model.core._grid(maps["f2"]).expand_as(maps["f2"]))
    return found


def _priors(model: Fssam, memory: Memory, rows: Tensor, query: Maps, masks: Tensor) -> Found:
    shots = model.shot_priors(memory.tensors, rows, query)
    both = torch.stack([shots.foreground, shots.difference], dim=2)
    found = {"ppg/fg_corr": shots.foreground, "ppg/bg_corr": shots.background, "ppg/corr_norm": shots.difference,
             "out/priors": both[:, 0] if both.shape[1] == 1 else both}
    small = resize(masks, query["prior"].shape[-1])
    return found | {f"ppg/sup_mask_small_{i}": small[:, i, None] for i in range(masks.shape[1])}


def _memory(model: Fssam, name: str, maps: Maps, masks: Tensor) -> Found:
    with Recorder(decoder=model.core.sam.sam_mask_decoder) as record:
        entries = model.core.remember_soft(maps, masks)
    place = model.core.sam.memory_encoder.position_encoding(entries.features)
    return {f"{name}_prompt_mask": masks[:, None], f"{name}_object_score_logits": record.got["decoder"][0][3],
            f"{name}_sam_mask_prompt": model.core.sam.mask_downsample(masks[:, None]),
            f"{name}_obj_ptr": entries.pointers, f"{name}_feat": entries.features, f"{name}_pos": place}


def _refinement(model: Fssam, found: Found, masks: Tensor, fg: Tensor, ae: Tensor) -> Found:
    b, k = masks.shape[:2]
    side = found["mem/qry_ae_feat"].shape[-1]
    noisy = QueryMemory(features=found["mem/qry_fg_feat"], mask=resize(fg, side))
    clean = QueryMemory(features=found["mem/qry_ae_feat"], mask=resize(ae, side))
    small = resize(masks, side)
    prototypes = pool(found["mem/sup_gt_feat"].unflatten(0, (b, k)), small)
    confirmed = support_agreement(noisy.features, prototypes)
    out = {"imr/sim_qry_sup": confirmed[:, None], "imr/prior_mem_call0": confirmed[:, None],
           "imr/sup_fg_small": small.flatten(0, 1)[:, None], "imr/prior_fg_small": noisy.mask[:, None],
           "imr/prior_ae_small_0": clean.mask[:, None]}
    steps = refine(noisy, clean, confirmed, rounds=model.config.num_refine, version=model.config.ver_refine)
    for i, after in enumerate(steps, start=1):
        called = agreement(noisy.features, pool(clean.features, clean.mask))
        out |= {f"imr/prior_mem_call{i}": called[:, None], f"imr/iter{i}_mem": after.features,
                f"imr/iter{i}_prior_ae": after.mask[:, None]}
        clean = after
    return out


def _attention_inputs(model: Fssam, memory: Memory, rows: Tensor, query: Maps, masks: Tensor) -> Found:
    held = model.pair_memory(memory.tensors, rows, query)
    assert held.query is not None
    blocks = torch.cat([held.supports, held.query[:, None]], dim=1)
    used = masks[:, :1] if model.config.k_shot == "released" else masks
    small = F.interpolate(used.flatten(0, 1)[:, None], size=query["f2"].shape[-2:], mode="nearest")
    place = held.position.expand_as(blocks).flatten(1, 2)
    memory_in, position_in = (torch.cat(parts, dim=1) for parts in (
        [blocks.flatten(1, 2), held.pointers], [place, torch.zeros_like(held.pointers)]))
    layers = len(model.core.sam.memory_attention.layers)
    return {f"scma/layer{i}/k_in": memory_in + position_in for i in range(layers)} | {
        "scma/curr": _sequence(query["f2"]),
        "scma/curr_pos": _sequence(model.core._grid(query["f2"]).expand_as(query["f2"])),
        "scma/memory": memory_in.transpose(0, 1),
        "scma/memory_pos": position_in.transpose(0, 1),
        "scma/support_mask_small": small, "scma/num_obj_ptr_tokens": torch.tensor(held.pointers.shape[1]),
    }


def _attention_layer(attn: Any, name: str, want: Found) -> Found:
    """Run one cross attention on the recorded tokens."""
    q_in, k_in = want[f"{name}/q_in"], want[f"{name}/k_in"]
    (b, n), rest = q_in.shape[:2], int(want["scma/num_obj_ptr_tokens"])
    small = want["scma/support_mask_small"][:, 0].unflatten(0, (b, -1))  # [b, T, f, f]
    values = attn.v_proj(want["scma/memory"].transpose(0, 1))
    keys = memory_keys(attn, k_in[:, :-rest].unflatten(1, (-1, n)))
    q, pointer_keys = rotate(attn, attn.q_proj(q_in)), attn.k_proj(k_in[:, -rest:])
    grid = keys[:, :small.shape[1]].transpose(2, 3).unflatten(3, small.shape[-2:])
    prototypes = pool(grid, small)
    done = calibrated_attention(attn, q, keys, values[:, :-rest].unflatten(1, (-1, n)), pointer_keys,
                                values[:, -rest:], prototypes)
    found = {"q_rope": q[:, None], "k_rope": torch.cat([keys.flatten(1, 2), pointer_keys], dim=1)[:, None],
             "v_proj": values[:, None], "cos_norm": done.likeness[:, None, None], "att_raw": done.scores[:, None],
             "att_bias": done.bias[:, None], "attn_weight": done.weights[:, None], "out": done.output}
    found |= {f"k_sup_proto_{j}": prototypes[:, j, None, None] for j in range(prototypes.shape[1])}
    return {f"{name}/{key}": value for key, value in found.items()}


def _end_to_end(model: Fssam, clip: Clip, memory: Memory, features: Features) -> Found:
    """Run `segment` and record the inputs and outputs of the attention's layers and the decoder's output."""
    b = len(memory)
    first, attention = len(clip.references), model.core.sam.memory_attention
    pairs = torch.stack([torch.arange(b), first + torch.arange(b)], dim=1)
    with Recorder(attention=attention, decoder=model.core.sam.sam_mask_decoder) as record:
        logits = model.segment(memory, features, pairs).logits
    layers = [f"attention.layers.{i}" for i in range(len(attention.layers))]
    after = [*(f"{layer}.norm1" for layer in layers[1:]), "attention.norm"]  # the module after each layer
    low, ious, _, scores = record.got["decoder"][-1]
    target = clip.target_masks[:, 0]
    found = {"scma/output": record.got["attention.norm"][0].transpose(0, 1), "out/logits": logits,
             "dec/lowres_multimasks": low, "dec/pred_ious": ious, "dec/best_index": ious.argmax(dim=1),
             "dec/object_score_logits": scores,
             "out/loss": squared_dice(logits, target, torch.ones_like(target))}
    for i, (layer, following) in enumerate(zip(layers, after, strict=True)):
        found |= {f"scma/layer{i}/q_in": record.got[f"{layer}.norm2"][0],
                  f"scma/layer{i}/layer_output": record.given[following][0][0]}
    return found


def _sequence(maps: Tensor) -> Tensor:
    return maps.flatten(2).permute(2, 0, 1)
