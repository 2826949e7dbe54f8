"""SAM 3: canvases, prompts, tokens, instances, and the six traps of building it on transformers and torchvision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from fss_models.clip import Memory, Prompt, PromptKind
from fss_models.errors import FssError
from fss_models.methods.sam3.boxes import mask_boxes
from fss_models.methods.sam3.build import META_EPSILON, _sizes_beside
from fss_models.methods.sam3.config import Sam3Config
from fss_models.methods.sam3.instances import read_objects
from fss_models.methods.sam3.layout import five_layout, layouts_of
from fss_models.methods.sam3.model import Sam3
from fss_models.prompts import mask_prompt
from fss_models.verification.sam3 import layout_of, load_parts
from fss_models.verification.sam3_case import nearest
from tests.fss_models.methods_here import needs_transformers
from tests.fss_models.sam3_case import CONFIG, GOLDEN, build, mask, memory_of, photo, tokenizer_file

pytestmark = needs_transformers
MODES = ("canvas", "token")


def count_pictures(model: Sam3) -> list[int]:
    """A list to which every call of the image encoder adds its number of pictures."""
    seen: list[int] = []
    model.detector.sam.vision_encoder.backbone.register_forward_hook(
        lambda _module, given, _got: seen.append(len(given[0])))
    return seen


# ---- canvases ------------------------------------------------------------------------------------------------------


def test_the_canvases_of_the_released_size() -> None:
    pair, five = layouts_of(Sam3Config(), 1008)
    assert pair.supports == ((0, 404, 1008, 604),)
    assert pair.query == (0, 0, 1008, 404), "COCO: the query is above"
    pascal = layouts_of(Sam3Config(query_first=False, layout="pair"), 1008)[0]
    assert (pascal.supports[0][3], pascal.query) == (604, (0, 604, 1008, 404))
    assert five == five_layout(1008, 0.3)
    cells = next(c for c in json.loads((GOLDEN / "unit_layouts.json").read_text())["layouts"]
                 if (c.get("layout"), c["ratio"]) == ("l_shape", 0.3))
    assert [list(c) for c in five.supports] == cells["support"]
    with pytest.raises(FssError, match="no room"):
        layouts_of(Sam3Config(pair_ratio=1.0), 1008)


@torch.no_grad()
@pytest.mark.parametrize("shots", [1, 3, 5])
def test_a_canvas_shows_the_photos_and_black_cells(shots: int) -> None:
    model = build()
    memory, features, pairs = memory_of(model, shots)
    layout = model.layouts[int(shots > 1)]
    canvas = model.canvases(memory, features, pairs)[0].permute(1, 2, 0).numpy()
    photos = [photo(i) for i in range(shots)]
    for number, cell in enumerate(layout.supports):
        shown = canvas[cell.part]
        if number < shots:
            want = model.preprocessor([photos[number]]).pixels[0, -3:] if shots > 1 else None
            assert shown.any()
            if want is not None:
                levels = ((want * 0.5 + 0.5) * 255).round().byte().permute(1, 2, 0).numpy()
                assert np.array_equal(shown, levels[cell.part])
        else:
            assert not shown.any(), "the cell of an absent support is black"
    assert canvas[layout.query.part].any()


def test_more_than_five_supports_warn_and_the_first_five_are_used() -> None:
    model = build()
    with pytest.warns(UserWarning, match="first 5 of 6 supports"):
        six, features, pairs = memory_of(model, 6)
    with torch.no_grad():
        marks = [[mask_prompt(mask(k)) for k in range(5)]]
        five = model.memorise(features, model.collate(marks, features.sizes[:5]))
        assert torch.equal(six.tensors["canvas"], five.tensors["canvas"])
        assert torch.equal(model.segment(six, features, pairs).logits, model.segment(five, features, pairs).logits)


def test_a_layout_for_one_support_refuses_two() -> None:
    with pytest.raises(FssError, match="room for one support, not 2"):
        memory_of(build(layout="pair"), 2)


@torch.no_grad()
def test_a_fixed_layout_gives_the_official_cell() -> None:
    model = build(layout="pair")
    memory, features, pairs = memory_of(model, 1)
    assert model.segment(memory, features, pairs).logits.shape == (2, 68, 168)


# ---- prompts -------------------------------------------------------------------------------------------------------


def test_points_and_scribbles_are_refused_by_name() -> None:
    for kind in (PromptKind.POINTS, PromptKind.SCRIBBLE):
        with pytest.raises(FssError, match=rf"'sam3' reads no {kind.name.lower()} marks.*box, mask"):
            Sam3.check_kind(kind)


def test_a_mask_of_two_pieces_uses_the_box_of_the_larger_one() -> None:
    two = np.zeros((80, 120), bool)
    two[5:40, 10:50] = True  # 1400 pixels
    two[50:80, 60:100] = True  # 1200 pixels
    two[0, 119] = True
    assert mask_boxes(two).tolist() == [[10, 5, 50, 40]]
    assert mask_boxes(two, "pieces").tolist() == [[10, 5, 50, 40], [60, 50, 100, 80]]
    assert mask_boxes(two, "whole").tolist() == [[10, 0, 120, 80]]
    with pytest.raises(FssError, match="empty"):
        mask_boxes(np.zeros((4, 4), bool))


@torch.no_grad()
@pytest.mark.parametrize("mode", MODES)
def test_a_box_is_the_prompt_that_its_mask_gives(mode: str) -> None:
    model = build(mode=mode)
    features = model.encode(model.prepare([photo(0), photo(1)]))
    box = Prompt(kind=PromptKind.BOX, box=torch.tensor([5.0, 10.0, 35.0, 30.0]))
    found = [model.memorise(features, model.collate([[p]], features.sizes[:1])) for p in (mask_prompt(mask(0)), box)]
    for name, value in found[0].tensors.items():
        torch.testing.assert_close(found[1].tensors[name], value)


@torch.no_grad()
def test_several_boxes_of_a_support_stay_with_their_set() -> None:
    """Two pieces give two prompts; the set beside it has one, and is not disturbed by the padding."""
    model = build(boxes="pieces")
    two = np.zeros((50, 70), bool)
    two[0:40, 0:30] = two[5:50, 36:66] = True
    features = model.encode(model.prepare([photo(0), photo(1), photo(2)]))
    memory = model.memorise(features, model.collate([[mask_prompt(two)], [mask_prompt(mask(1))]], features.sizes))
    assert memory.tensors["boxes_valid"].tolist() == [[True, True], [True, False]]
    own = model.memorise(features, model.collate([[mask_prompt(mask(1))]], features.sizes, torch.tensor([[1]])))
    torch.testing.assert_close(model.segment(memory, features, torch.tensor([[1, 2]])).logits,
                               model.segment(own, features, torch.tensor([[0, 2]])).logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("mode", MODES)
def test_a_class_name_is_part_of_the_prompt_where_the_settings_say_so(mode: str, tmp_path: Path) -> None:
    file = tokenizer_file(tmp_path / "tokenizer.json")
    model = build(mode=mode, class_names=True, tokenizer_weights=file)
    assert set(model.frozen_weights()) == {"tokenizer"}
    found = {}
    for name in ("cat", "traffic light", "visual", ""):
        memory, features, pairs = memory_of(model, 2, names=(name,))
        found[name] = model.segment(memory, features, pairs).logits
    assert not torch.allclose(found["cat"], found["traffic light"])
    plain = build(mode=mode)
    memory, features, pairs = memory_of(plain, 2, names=("cat",))
    torch.testing.assert_close(plain.segment(memory, features, pairs).logits, found[""])
    assert plain.detector.sam.text_encoder is None, "without names the text encoder is not kept"


def test_class_names_need_a_tokenizer() -> None:
    with pytest.raises(FssError, match=r"class names need the tokenizer of SAM 3.*tokenizer_weights"):
        build(class_names=True)


def test_a_phrase_is_refused_where_none_is_read() -> None:
    with pytest.raises(FssError, match=r"reads no `prompt`.*class_names: true"):
        Sam3.check_phrase("a red cup", Sam3Config())
    Sam3.check_phrase("a red cup", Sam3Config(class_names=True))
    Sam3.check_phrase("", Sam3Config())


# ---- the cost ------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("mode", MODES)
def test_the_image_encoder_runs_as_often_as_the_plan_says(mode: str) -> None:
    """Three classes with two supports each, and seven photos."""
    model, photos = build(mode=mode), 7
    seen = count_pictures(model)
    memories = []
    for first in (0, 2, 4):
        features = model.encode(model.prepare([photo(first), photo(first + 1)]))
        marks = [[mask_prompt(mask(first)), mask_prompt(mask(first + 1))]]
        memories.append(model.memorise(features, model.collate(marks, features.sizes)))
    features = model.encode(model.prepare([photo(i) for i in range(photos)]))
    model.segment(Memory.stack(memories), features, torch.cartesian_prod(torch.arange(3), torch.arange(photos)))
    assert sum(seen) == Sam3.image_encodings(model.config, photos=photos, classes=3, supports=6)
    assert sum(seen) == (21 if mode == "canvas" else 13)


# ---- masks and instances -------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("mode", MODES)
def test_instances_unite_to_the_mask_where_none_is_suppressed(mode: str) -> None:
    model = build(mode=mode, suppress=1.0)
    memory, features, pairs = memory_of(model, 1, photos=4)
    found = model.segment(memory, features, pairs)
    own = found.instances
    assert own is not None
    assert len(own.scores) > 4
    for row in range(4):
        mine = own.pair == row
        assert torch.equal((own.logits[mine] > 0).any(dim=0), found.logits[row] > 0)
        assert own.scores[mine].tolist() == sorted(own.scores[mine].tolist(), reverse=True)
        assert float(found.scores[row]) == float(own.scores[mine].max())
    assert own.window.tolist() == [[0, 0, *found.logits.shape[1:]]] * 4
    fewer = build(mode=mode, suppress=0.5).segment(memory, features, pairs)
    assert fewer.instances is not None
    assert len(fewer.instances.scores) < len(own.scores)
    assert torch.equal(fewer.logits, found.logits), "the mask of the class is not affected"


@torch.no_grad()
@pytest.mark.parametrize("mode", MODES)
def test_a_photo_in_which_nothing_is_found_has_no_mask_and_score_0(mode: str) -> None:
    model = build(mode=mode, threshold=1.0)
    memory, features, pairs = memory_of(model, 1)
    found = model.segment(memory, features, pairs)
    assert found.scores.tolist() == [0, 0]
    assert bool((found.logits == -10).all())
    assert found.instances is not None
    assert not len(found.instances.scores)


@torch.no_grad()
@pytest.mark.parametrize("mode", MODES)
def test_chunks_change_nothing(mode: str) -> None:
    memory, features, pairs = memory_of(build(mode=mode), 2, photos=5)
    one, all_ = (build(mode=mode, chunk=chunk).segment(memory, features, pairs) for chunk in (1, 5))
    torch.testing.assert_close(one.logits, all_.logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(one.logits > 0, all_.logits > 0)


@torch.no_grad()
def test_half_precision_is_that_of_the_image_encoder_alone() -> None:
    memory, features, pairs = memory_of(build(), 2, photos=3)
    full, half = (build(precision=kind).segment(memory, features, pairs) for kind in ("float32", "bfloat16"))
    assert half.logits.dtype == half.scores.dtype == torch.float32
    assert not torch.equal(half.logits, full.logits)
    assert ((half.logits > 0) != (full.logits > 0)).double().mean() < 0.02


# ---- six traps -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_trap_1_nothing_is_compiled_and_torchvision_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("compiled, or called torchvision")

    monkeypatch.setattr(torch, "compile", refuse)
    for name in ("roi_align", "nms"):
        monkeypatch.setattr(torchvision.ops, name, refuse)
    for mode in MODES:
        model = build(mode=mode)
        memory, features, pairs = memory_of(model, 2)
        assert model.segment(memory, features, pairs).logits.isfinite().all()


@torch.no_grad()
def test_trap_2_the_class_token_is_there_without_a_box() -> None:
    case, stored = json.loads((GOLDEN / "cases.json").read_text()), load_file(GOLDEN / "unit_geometry.safetensors")
    detector = load_parts(GOLDEN, next(iter(case.values()))).detector
    pixels = (stored["photo"].permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.5
    maps, ids = detector.vision(pixels), stored["text_only.input_ids"]
    shown = torch.arange(32)[None] <= ids.argmax()
    text = detector.text(ids, shown)
    none, valid = detector.geometry(maps["coarse"], torch.zeros(1, 0, 4), torch.zeros(1, 0, dtype=torch.bool))
    with_token = detector.detect(maps, torch.cat([text, none], dim=1), torch.cat([shown, valid], dim=1))
    without = detector.detect(maps, text, shown)
    torch.testing.assert_close(with_token.logits, stored["text_only.logits"], rtol=1e-4, atol=1e-4)
    assert (without.logits - stored["text_only.logits"]).abs().max() > 0.1, "as transformers computes it"


@torch.no_grad()
def test_trap_3_text_tokens_are_those_of_the_object_and_the_rest_is_transformers_own_path() -> None:
    parts = load_parts(GOLDEN, next(iter(json.loads((GOLDEN / "cases.json").read_text()).values())))
    stored = load_file(GOLDEN / "unit_geometry.safetensors")
    ids = stored["text_only.input_ids"]
    shown = torch.arange(32)[None] <= ids.argmax()
    pixels = (stored["photo"].permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.5
    sam = parts.detector.sam
    given = sam.get_text_features(input_ids=ids, attention_mask=shown.long())
    tokens = parts.detector.text(ids, shown)
    assert torch.equal(tokens, given.pooler_output)
    vision = sam.vision_encoder.backbone(pixels)
    grid = vision.last_hidden_state.transpose(1, 2).unflatten(2, (12, 12))
    maps = [layer(grid) for layer in sam.vision_encoder.neck.fpn_layers]
    places = [sam.vision_encoder.neck.position_encoding(m.shape, m.device, m.dtype) for m in maps]
    embeds = type(given)(last_hidden_state=vision.last_hidden_state)
    embeds.fpn_hidden_states, embeds.fpn_position_encoding = [*maps, maps[-1]], [*places, places[-1]]
    with pytest.raises(AttributeError):
        sam(vision_embeds=embeds, text_embeds=tokens, attention_mask=shown.long())
    theirs = sam(vision_embeds=embeds, text_embeds=given, attention_mask=shown.long())
    ours = parts.detector.detect(parts.detector.vision(pixels), tokens, shown)
    for name, value in (("pred_logits", ours.logits), ("pred_masks", ours.masks), ("pred_boxes", ours.boxes),
                        ("presence_logits", ours.presence), ("semantic_seg", ours.semantic)):
        torch.testing.assert_close(theirs[name], value, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_trap_4_masks_are_enlarged_as_logits() -> None:
    """transformers' post-processing enlarges probabilities, which moves borders."""
    case, stored = json.loads((GOLDEN / "cases.json").read_text())["canvas_5_visual"], load_file(
        GOLDEN / "canvas_5_visual.safetensors")
    parts, layout = load_parts(GOLDEN, case, visual=int(stored["text.input_ids"][0, 1])), layout_of(case, 168)
    model = Sam3(preset="golden", config=Sam3Config(layout="five"), parts=parts, layouts=(layout,))
    photos = [stored[f"inputs.support.{k}"].numpy() for k in range(5)] + [stored["inputs.query"].numpy()]
    marks = [[mask_prompt(stored[f"inputs.support_mask.{k}"].numpy()) for k in range(5)]]
    images = model.prepare(photos)
    features = model.encode(images)
    memory = model.memorise(features, model.collate(marks, images.sizes))
    seen = model._detect_canvases(memory, features, torch.tensor([[0, 5]]))
    objects = read_objects(seen.scores[0], seen.masks[0], 0.5, layout)
    size = tuple(stored["final.mask"].shape)
    assert torch.equal(nearest(objects.whole > 0, size), stored["final.mask"].bool())
    large = F.interpolate(seen.masks[:, objects.queries].sigmoid(), size=(168, 168), mode="bilinear")[0]
    rows, columns = layout.query.part
    wrong = nearest((large[:, rows, columns] > 0.5).any(dim=0), size)
    assert (wrong != stored["final.mask"].bool()).sum() > 20


def test_trap_5_the_epsilon_is_that_of_the_weights(tmp_path: Path) -> None:
    for name in ("sam3.pt", "model.safetensors"):
        (tmp_path / name).touch()
    assert _sizes_beside(tmp_path / "model.safetensors") == {}
    meta = _sizes_beside(tmp_path / "sam3.pt")["vision_config"]["backbone_config"]
    assert meta["layer_norm_eps"] == META_EPSILON == 1e-5
    (tmp_path / "config.json").write_text(CONFIG.read_text())
    for name in ("sam3.pt", "model.safetensors"):
        found = _sizes_beside(tmp_path / name)["vision_config"]["backbone_config"]
        assert found["layer_norm_eps"] == 1e-5
    (tmp_path / "config.json").write_text(json.dumps({"detector_config": {"a": 1}, "tracker_config": {}}))
    assert _sizes_beside(tmp_path / "sam3.pt") == {"a": 1}, "of the video model"
    from transformers import Sam3Config as Sizes

    made = Sizes.from_dict(meta_sizes := {"vision_config": {"backbone_config": meta}})
    assert made.vision_config.backbone_config.layer_norm_eps == 1e-5
    assert made.vision_config.backbone_config.hidden_size == 1024, meta_sizes
    assert Sizes().vision_config.backbone_config.layer_norm_eps == 1e-6


@torch.no_grad()
def test_trap_6_the_clamp_of_presence_hardly_changes_scores() -> None:
    model = build()
    memory, features, pairs = memory_of(model, 1)
    model.detector.sam.detr_decoder.presence_head.layer3.bias.fill_(30)
    seen = model._detect_canvases(memory, features, pairs)
    assert bool((seen.presence == 10).all()), "transformers clamps"
    free = seen.logits.sigmoid()
    assert 0 < float((free - seen.scores).max()) < 5e-5
