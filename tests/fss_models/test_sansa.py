"""SANSA's parts: what is trained, how references enter memory, prompts, batches, official adapter files."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fss_models import registry
from fss_models.adapters import tuning
from fss_models.clip import Memory, PromptKind
from fss_models.errors import FssError
from fss_models.methods.sansa.config import SansaConfig
from fss_models.methods.sansa.model import Sansa
from fss_models.official import load_official, official_state, read_tensors
from fss_models.prompts import mask_prompt
from fss_models.sam2_core.build import build_sam2
from fss_models.sam2_core.core import MemoryRules, Sam2Core
from fss_models.verification.figures import relative_error
from tests.fss_models import debug_outputs as fixed


@pytest.fixture(scope="module")
def large() -> Any:
    return build_sam2("large")


@pytest.mark.parametrize(("name", "millions"), [
    ("frozen", 0), ("decoder", 4.08), ("qkv", 50.84), ("backbone", 212.15), ("full", 224.30)])
def test_tunings_of_large_have_the_papers_sizes(large: Any, name: str, millions: float) -> None:
    """Table 5: decoder 4 M, QKV 50 M, backbone 210 M, full 224 M."""
    model = Sansa(preset="large", config=SansaConfig(tuning=name, rest="frozen"), sam=large)  # type: ignore[arg-type]
    model.set_trainable()
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize("name", ["adaptformer", "lora", "mona", "houlsby"])
@pytest.mark.parametrize("preset", ["debug", "nano"])
def test_adapters_start_as_the_frozen_model_and_train_alone(name: str, preset: str) -> None:
    plain, adapted = (registry.build("sansa", preset, {"tuning": t, "rest": "frozen"}) for t in ("frozen", name))
    images = plain.prepare([fixed.picture(0), fixed.picture(3)])
    with torch.no_grad():
        before, after = (m.encode(images).maps["f2"] for m in (plain, adapted))
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-5)
    state = adapted.state_dict()
    state.update({k: v for k, v in plain.state_dict().items() if k in state})
    adapted.load_state_dict(state)
    trained = adapted.trainable_names()
    assert trained
    assert not trained & plain.state_dict().keys()
    sum(adapted.losses(fixed.clip(adapted)).values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad)


def test_tunings_that_cannot_be_are_one_line() -> None:
    for config, word in (({"tuning": "qkv"}, "no attention"), ({"stages": [4]}, "no stage 4"),
                         ({"tuning": "lola"}, "known: frozen")):
        with pytest.raises(FssError, match=word):
            registry.build("sansa", "nano", config)


@pytest.mark.parametrize("preset", ["debug", "debug_2.1"])
@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("count", [1, 2, 6, 9, 18])
def test_memory_is_read_as_sam2_reads_it(preset: str, everything: bool, count: int) -> None:
    """Against the package's own frame-by-frame reading; more references than memories and pointers included."""
    sam = _as_2_1(build_sam2("debug")) if preset == "debug_2.1" else build_sam2("debug")
    core = Sam2Core(sam, MemoryRules(all_conditioning=everything)).eval()
    fixed.fill(core)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, count, sam.mem_dim, 4, 4, generator=generator)
    pointers = torch.randn(1, count, sam.hidden_dim, generator=generator)
    f2 = torch.randn(1, sam.hidden_dim, 4, 4, generator=generator)
    with torch.no_grad():
        ours, theirs = core.attend(f2, features, pointers), _frame_by_frame(core, f2, features, pointers, everything)
    assert relative_error(ours, theirs) < 1e-5


def _as_2_1(sam: Any) -> Any:
    sam.add_tpos_enc_to_obj_ptrs = sam.proj_tpos_enc_in_obj_ptrs = sam.use_signed_tpos_enc_to_obj_ptrs = True
    sam.obj_ptr_tpos_proj = torch.nn.Linear(sam.hidden_dim, sam.mem_dim)
    return sam


def _frame_by_frame(core: Sam2Core, f2: Any, features: Any, pointers: Any, everything: bool) -> Any:
    sam, count = core.sam, features.shape[1]
    place = sam.memory_encoder.position_encoding(features[:, 0])
    entries = {i: {"maskmem_features": features[:, i], "maskmem_pos_enc": [place], "obj_ptr": pointers[:, i]}
               for i in range(count)}
    prompted = count if everything else 1
    return sam._prepare_memory_conditioned_features(
        frame_idx=count, is_init_cond_frame=False, current_vision_feats=[f2.flatten(2).permute(2, 0, 1)],
        current_vision_pos_embeds=[core._grid(f2).flatten(2).permute(2, 0, 1)], feat_sizes=[f2.shape[-2:]],
        output_dict={"cond_frame_outputs": {i: e for i, e in entries.items() if i < prompted},
                     "non_cond_frame_outputs": {i: e for i, e in entries.items() if i >= prompted}},
        num_frames=count + 1)


@pytest.mark.parametrize(("rule", "same"), [("first_conditioning", False), ("all_conditioning", True)])
def test_the_order_of_references_matters_only_where_the_released_code_says_so(rule: str, same: bool) -> None:
    model = registry.build("sansa", "debug", {"references": rule}).eval()
    fixed.fill(model)
    with torch.no_grad():
        features = model.encode(model.prepare([fixed.picture(i) for i in range(4)]))
        given = [mask_prompt(fixed.box_mask(i)) for i in range(3)]
        found = []
        for order in ([0, 1, 2], [2, 0, 1]):
            prompts = model.collate([[given[i] for i in order]], features.sizes, torch.tensor([order]))
            found.append(model.segment(model.memorise(features, prompts), features, torch.tensor([[0, 3]])).logits)
    assert (relative_error(*found) < 1e-5) == same


@torch.no_grad()
def test_one_memory_and_sixteen_queries_equal_sixteen_clips() -> None:
    model = registry.build("sansa", "debug").eval()
    fixed.fill(model)
    support = model.encode(model.prepare([fixed.picture(i) for i in range(5)]))
    marks = model.collate([[mask_prompt(fixed.box_mask(i)) for i in range(5)]], support.sizes)
    queries = model.prepare([fixed.picture(5 + i) for i in range(16)])
    memory = model.memorise(support, marks)
    pairs = torch.tensor([[0, i] for i in range(16)])
    together = model.segment(memory, model.encode(queries), pairs).logits
    for i in range(16):
        one = model.encode(model.prepare([*[fixed.picture(k) for k in range(5)], fixed.picture(5 + i)]))
        alone = model.segment(model.memorise(one, marks), one, torch.tensor([[0, 5]])).logits
        assert relative_error(together[i], alone[0]) < 1e-4


def test_training_goes_on_after_prediction_under_inference_mode() -> None:
    """Position codes that were cached by a prediction must not stop a later backward pass."""
    model = registry.build("sansa", "debug")
    with torch.inference_mode():
        features = model.encode(model.prepare([fixed.picture(0)]))
        model.memorise(features, model.collate([[mask_prompt(fixed.box_mask(0))]], features.sizes))
    sum(model.losses(fixed.clip(model)).values()).backward()  # type: ignore[union-attr]


def test_supervised_frames_follow_the_released_rule() -> None:
    """All but the first frame where references are masks, every frame otherwise, targets alone where asked."""
    counted = {}
    for name, config in (("auto", {}), ("targets", {"supervise": "targets"}), ("all", {"supervise": "all"})):
        model = registry.build("sansa", "debug", config)
        assert isinstance(model, Sansa)
        marks = model.collate([[mask_prompt(fixed.box_mask(0))] * 2] * 2, torch.tensor([[50, 70]]),
                              torch.zeros(2, 2, dtype=torch.int64))
        blind = replace(fixed.clip(model), prompts=marks)
        known = replace(blind, reference_masks=torch.zeros(2, 2, model.side, model.side))
        masks = model._unsupervised(known)
        marks.kind[0, 1] = int(PromptKind.POINTS)
        counted[name] = (masks, model._unsupervised(known), model._unsupervised(blind))
    assert counted == {"auto": (1, 0, 2), "targets": (2, 2, 2), "all": (0, 0, 0)}


def test_references_can_be_supervised_only_with_their_masks() -> None:
    model = registry.build("sansa", "debug", {"supervise": "all"})
    with pytest.raises(FssError, match="no masks of them"):
        model.losses(fixed.clip(model))


def test_memory_dropout_is_a_switch() -> None:
    for on in (True, False):
        model = registry.build("sansa", "debug", {"memory_dropout": on})
        assert isinstance(model, Sansa)
        assert model.train().core.sam.memory_attention.training == on


def test_a_clip_without_numbers_is_left_out() -> None:
    model = registry.build("sansa", "debug", {"rest": "frozen"})
    assert isinstance(model, Sansa)
    logits, ious = model.predict(fixed.clip(model))
    masks, valid = fixed.clip(model).target_masks, ~fixed.clip(model).ignore
    whole = model._terms(logits[:1, 1:], ious[:1], masks[:1], valid[:1])
    spoilt = logits[:, 1:].clone()
    spoilt[1, 0, 0, 0, 0] = float("nan")
    rest = model._terms(spoilt, ious, masks, valid)
    assert all(torch.equal(whole[k], rest[k]) for k in whole)


def test_official_adapters_go_in_and_out(tmp_path: Path) -> None:
    """A file of the official layout: torch's format, with training state beside the adapters."""
    base, file = tmp_path / "base.pt", tmp_path / "adapter.pth"
    torch.save({"model": build_sam2("tiny", object_scores=True).state_dict()}, base)
    model = registry.build("sansa", "tiny", {"stages": [2, 3], "factor": 0.8}, weights=str(base))
    fixed.fill(model)
    official = official_state(model)
    assert len(official) == 54
    torch.save({"model": {f"module.{k}": v for k, v in official.items()}, "epoch": 4, "args": Namespace(lr=1e-4)}, file)
    again = load_official("sansa", "tiny", str(file), weights=str(base))
    assert registry.config_dict(again)["factor"] == 0.8
    assert all(torch.equal(v, official[k]) for k, v in official_state(again).items())
    _refusals(official, base, tmp_path)


def _refusals(official: dict[str, torch.Tensor], base: Path, folder: Path) -> None:
    first = min(k for k in official if ".blocks.3." in k)
    wrong = {
        f"lacks '{first}'": {k: v for k, v in official.items() if k != first},
        "unknown key 'sam.no_mem_embed'": official | {"sam.no_mem_embed": torch.zeros(1)},
        "lacks the adapter of block 3": {k: v for k, v in official.items() if ".blocks.3." not in k},
        f"'{first}' has shape": official | {first: torch.zeros(2, 3)},
    }
    for line, state in wrong.items():
        save_file(state, folder / "wrong.safetensors")
        with pytest.raises(FssError) as caught:
            load_official("sansa", "tiny", str(folder / "wrong.safetensors"), weights=str(base))
        assert line in str(caught.value)
    save_file(official, folder / "good.safetensors")
    with pytest.raises(FssError, match="--weights"):
        load_official("sansa", "tiny", str(folder / "good.safetensors"))
    with pytest.raises(FssError, match="lacks the adapter of block 2"):
        load_official("sansa", "base_plus", str(folder / "good.safetensors"), weights=str(base))


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return print, ("executed",)

    torch.save({"model": {"sam.x": torch.zeros(1)}, "more": Harm()}, tmp_path / "bad.pth")
    with pytest.raises(FssError, match="not a checkpoint"):
        read_tensors(str(tmp_path / "bad.pth"))


def test_every_tuning_is_in_the_table() -> None:
    names = SansaConfig.__dataclass_fields__["tuning"]
    assert names.default == "adaptformer"
    assert set(tuning.Tuning.__args__) == set(tuning._TABLE)


def test_memories_of_one_and_many_references_mix() -> None:
    model = registry.build("sansa", "debug", {"references": "all_conditioning"}).eval()
    with torch.no_grad():
        features = model.encode(model.prepare([fixed.picture(i) for i in range(9)]))
        sets = [[mask_prompt(fixed.box_mask(i)) for i in range(8)], [mask_prompt(fixed.box_mask(8))]]
        memory = model.memorise(features, model.collate(sets, features.sizes))
        both = model.segment(memory, features, torch.tensor([[0, 0], [1, 0]])).logits
        one = model.segment(Memory.stack([memory.take(torch.tensor([1]))]), features, torch.tensor([[0, 0]])).logits
    torch.testing.assert_close(both[1], one[0], rtol=1e-4, atol=1e-4)
