"""Negative examples: what the methods that use them make of them; all others refuse in one line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fss_models import FssError, Predictor, registry
from fss_models.clip import Prediction, Prompt, PromptKind
from fss_models.leave_one_out import leave_one_out
from fss_models.marks import check_mark, mark_prompt, marks_all, rle_json
from fss_models.methods.fssam.prior import add_background, prior_prototypes
from fss_models.methods.insid3.matching import like_negatives
from fss_models.methods.matcher.matching import match_patches
from fss_models.prompts import collate, mask_prompt
from fss_models.segmenter import Segmenter
from tests.fss_models.methods_here import methods, needs_transformers
from tests.fss_models.test_contract import HEIGHT, WIDTH, box_mask, fresh, picture

HARD = {"matcher", "gf_sam", "insid3"}  # hard masks, which with random weights are often equal: tested one by one
WHOLE = np.ones((HEIGHT, WIDTH), bool)


def negative(mask: np.ndarray) -> Prompt:
    return Prompt(kind=PromptKind.MASK, mask=torch.from_numpy(mask), negative=True)


def blue(photo: np.ndarray) -> np.ndarray:
    """The photo with one more box, blue."""
    with_box = photo.copy()
    with_box[32:48, 10:60] = (30, 60, 220)
    return with_box


@torch.inference_mode()
def segmented(model: Segmenter, photos: list[np.ndarray], sets: list[list[Prompt]]) -> Prediction:
    """The last photo, by each set of prompts, whose photos are the first ones in order."""
    features = model.encode(model.prepare(photos).to(model.device))
    image = torch.arange(max(map(len, sets))).repeat(len(sets), 1)
    memory = model.memorise(features, model.collate(sets, features.sizes, image))
    pairs = torch.tensor([[row, len(photos) - 1] for row in range(len(sets))])
    return model.segment(memory, features, pairs)


@pytest.mark.parametrize("name", methods())
def test_a_method_uses_negatives_or_refuses_them_in_one_line(name: str) -> None:
    model = fresh(name)
    used = model.negatives(model.config)
    part = negative(box_mask(20))
    sizes = torch.tensor([[HEIGHT, WIDTH]] * 2)
    for prompt, taken in ((negative(WHOLE), used != "none"), (part, used == "marks")):
        sets = [[mask_prompt(box_mask()), prompt]]
        if not taken:
            with pytest.raises(FssError, match=rf"method '{name}' uses n(o negative examples|egative photos, but no)"):
                model.collate(sets, sizes)
            continue
        photos = [picture(0), blue(picture(1)), blue(picture(2))]
        both = segmented(model, photos, [sets[0], sets[0][:1]]).logits
        alone = segmented(model, photos, [sets[0][:1]]).logits
        torch.testing.assert_close(both[1], alone[0], rtol=1e-4, atol=1e-4)
        if name not in HARD:
            assert not torch.allclose(both[0], both[1]), "the negative example does not matter"
        order = segmented(model, [photos[1], photos[0], photos[2]], [sets[0][::-1]]).logits
        torch.testing.assert_close(order[0], both[0], rtol=1e-4, atol=1e-4)


def test_negatives_come_last_with_their_photos() -> None:
    sizes = torch.tensor([[HEIGHT, WIDTH]] * 3)
    sets = [[negative(WHOLE), mask_prompt(box_mask(1)), mask_prompt(box_mask(2))], [mask_prompt(box_mask(3))]]
    batch = collate(sets, sizes, 64, image=torch.tensor([[0, 1, 2], [1, 0, 0]]))
    assert batch.image[0].tolist() == [1, 2, 0]
    assert batch.negatives.tolist() == [[False, False, True], [False] * 3]
    assert batch.shown.tolist() == [[True, True, False], [True, False, False]]
    assert bool(batch.masks[0, 2].all())
    assert collate(sets[1:], sizes, 64).negative is None


def test_the_prior_takes_what_is_marked_for_background_and_nothing_else() -> None:
    """The prototypes by hand: the negative's marked cells join the background's mean, its other cells count nowhere."""
    model = fresh("prior")
    features = model.encode(model.prepare([picture(0), blue(picture(1))]))
    sets = [[mask_prompt(box_mask()), negative(box_mask(20))]]
    prompts = model.collate(sets, features.sizes)
    found = model.memorise(features, prompts).tensors["prototypes"][0]
    cover = torch.nn.functional.interpolate(prompts.masks[0][:, None], size=features.maps["trunk"].shape[-2:],
                                            mode="area")[:, 0]
    maps = features.maps["trunk"]
    background = (maps[0] * (1 - cover[0])).sum(dim=(1, 2)) + (maps[1] * cover[1]).sum(dim=(1, 2))
    background = background / ((1 - cover[0]).sum() + cover[1].sum())
    own = (maps[0] * cover[0]).sum(dim=(1, 2)) / cover[0].sum()
    wanted = torch.nn.functional.normalize(torch.stack([own, background]), dim=1)
    torch.testing.assert_close(found, wanted)


def test_a_negative_photo_is_remembered_as_empty() -> None:
    """SANSA's negative reference: the memory of a photo whose mask is empty."""
    model = fresh("sansa")
    features = model.encode(model.prepare([picture(0), picture(1)]))
    empty = Prompt(kind=PromptKind.MASK, mask=torch.zeros(HEIGHT, WIDTH, dtype=torch.bool))
    one, other = (model.memorise(features, model.collate([[mask_prompt(box_mask()), p]], features.sizes)).tensors
                  for p in (negative(WHOLE), empty))
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_a_match_that_leads_back_to_a_negative_becomes_a_point_off_the_object() -> None:
    """Three patches of the object, two of a negative photo; the target's third patch is the negative's."""
    similarity = np.array([[0.9, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.3], [0.0, 0.0, 0.95], [0.0, 0.0, 0.0]])
    found = match_patches(similarity, np.arange(3), crowded=40, negatives=2)
    assert (found.target.tolist(), found.negative.tolist()) == ([0, 1], [2])
    plain = match_patches(similarity[:3], np.arange(3), crowded=40)
    assert (plain.target.tolist(), plain.negative.tolist()) == ([0, 1, 2], [])


def test_matcher_gives_negative_points_to_sam() -> None:
    model = registry.build("matcher", "debug").eval()
    photos = [picture(0), picture(3), picture(3)]  # what is not the target's object is marked as negative
    features = model.encode(model.prepare(photos))
    sets = [[mask_prompt(box_mask()), negative(~box_mask(3))]]
    memory = model.memorise(features, model.collate(sets, features.sizes, torch.tensor([[0, 1]])))
    given: list[tuple[int, int]] = []
    decode = model._decode

    def seen(*args: Any, off: int = 0, **more: Any) -> Any:
        given.append((args[2].shape[1], off))
        return decode(*args, off=off, **more)

    model._decode = seen  # type: ignore[method-assign]
    (found,) = model.analyse(memory, features, torch.tensor([[0, 2]]))
    assert 1 <= len(found.off) <= model.use.negative_points
    assert not {tuple(p) for p in found.off.tolist()} & {tuple(p) for p in found.points.tolist()}
    assert {off for _, off in given} == {len(found.off)}
    assert int(memory.tensors["shots"][0]) == 1


def test_insid3_drops_patches_that_are_more_like_the_negative() -> None:
    query = torch.nn.functional.normalize(torch.tensor([[[1.0, 0.2, 0.9], [0.1, 1.0, 0.8]]]), dim=1)  # [1, 2, 3]
    references = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]]])  # [1, 2, 2, 2]
    masks = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
    assert like_negatives(references, masks, query).tolist() == [[False, True, False]]


def test_gf_sam_takes_what_is_marked_for_background() -> None:
    model = fresh("gf_sam")
    features = model.encode(model.prepare([picture(0), blue(picture(1))]))
    one, both = (model.memorise(features, model.collate([s], features.sizes)) for s in (
        [mask_prompt(box_mask())], [mask_prompt(box_mask()), negative(WHOLE)]))
    assert both.counts.tolist() == [1]
    old, new = one.tensors["prototypes"][0], both.tensors["prototypes"][0]
    torch.testing.assert_close(new[0], old[0])
    mean = features.maps["cells"][1].flatten(1).mean(dim=1)
    torch.testing.assert_close(new[1], (old[1] + mean) / 2)
    assert both.tensors["filled"][0].tolist() == [*one.tensors["filled"][0].tolist(), 0]


def test_fssam_takes_what_is_marked_for_background_of_every_shot() -> None:
    features = torch.rand(2, 3, 4, 5, 5)
    own = (torch.rand(2, 3, 5, 5) > 0.5).float()
    own[1, 1:] = 0  # a set with one shot, and none that is negative
    marked = torch.zeros(2, 3, 5, 5)
    marked[0, 2, :2] = 1
    shown = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    made = prior_prototypes(features.flatten(0, 1), own.flatten(0, 1)).unflatten(0, (2, 3)) * shown[..., None, None]
    found = add_background(made, (1 - own).sum(dim=(2, 3)), features, marked)
    assert torch.equal(found[1], made[1])
    assert torch.equal(found[0, :, 0], made[0, :, 0])
    assert not found[0, 2].any()
    for shot in range(2):
        weight = torch.stack([1 - own[0, shot], marked[0, 2]])
        cells = torch.stack([features[0, shot], features[0, 2]])
        mean = torch.einsum("nhw,ndhw->d", weight, cells) / weight.sum()
        torch.testing.assert_close(found[0, shot, 1], mean, rtol=1e-3, atol=1e-3)  # `pool` adds a little to areas


@needs_transformers
@pytest.mark.parametrize("mode", ["canvas", "token"])
def test_sam3_takes_negative_boxes_only_if_asked(mode: str) -> None:
    from fss_models.methods.sam3.config import Sam3Config

    config = {"mode": mode, "negative_boxes": True}
    model = registry.build("sam3", "debug", config).eval()
    part = negative(box_mask(20))
    sets = [[mask_prompt(box_mask()), part]]
    photos = [picture(0), picture(1), picture(2)]
    as_positive = [[mask_prompt(box_mask()), mask_prompt(box_mask(20))]]
    signed = [segmented(model, photos, s).logits for s in (sets, as_positive)]
    assert not torch.equal(*signed), "the sign of the box does not matter"
    plain = registry.build("sam3", "debug", {"mode": mode}).eval()
    torch.testing.assert_close(segmented(plain, photos, as_positive).logits, signed[1])
    with pytest.raises(FssError, match=r"uses no negative examples \(build it with config negative_boxes: true\)"):
        plain.check_negative(Sam3Config(mode=mode), whole=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(("mark", "line"), [
    ({"negative": False}, "needs exactly one of mask, box, points, scribble; it has none of them"),
    ({"negative": "yes", "box": [0, 0, 5, 5]}, "negative: is 'yes', not true or false"),
    ({"negative": True, "labels": [0]}, "labels belong to points or scribble, not to a negative photo"),
    ({"negative": True, "points": [[3, 4]], "labels": [1]}, "a point of a negative mark has label 1"),
    ({"negative": True, "mask": rle_json(~WHOLE)}, "the mask is empty"),
])
def test_mistakes_in_negative_marks_are_one_line(mark: dict[str, Any], line: str) -> None:
    with pytest.raises(FssError) as caught:
        check_mark(mark, HEIGHT, WIDTH, "s[0]")
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mark", [
    {"negative": True}, {"negative": True, "box": [0, 0, 5, 5]}, {"negative": True, "points": [[3, 4], [5, 6]]},
    {"negative": True, "scribble": [[3, 4]], "labels": [0]}, {"negative": True, "mask": rle_json(box_mask())},
])
def test_a_canonical_negative_mark_reads_as_itself(mark: dict[str, Any]) -> None:
    made = check_mark(mark, HEIGHT, WIDTH, "")
    assert made["negative"] is True
    assert check_mark(made, HEIGHT, WIDTH, "") == made
    assert marks_all(made) == (mark == {"negative": True})
    prompt = mark_prompt(made)
    assert prompt.negative
    assert prompt.labels is None or not prompt.labels.any()


def test_a_mark_that_is_not_negative_has_no_such_key() -> None:
    assert check_mark({"box": [0, 0, 5, 5], "negative": False}, HEIGHT, WIDTH, "") == {"box": [0, 0, 5, 5]}


def test_leave_one_out_keeps_what_is_always_there() -> None:
    assert leave_one_out([0, 2], [1]) == [((1, 2), 0), ((0, 1), 2)]
    assert leave_one_out(range(3)) == [((1, 2), 0), ((0, 2), 1), ((0, 1), 2)]


def test_the_python_api_takes_negatives_and_says_what_is_not_read() -> None:
    predictor = Predictor(registry.build("prior", "debug"))
    rows: list[dict[str, Any]] = [{"image": picture(0), "mask": box_mask()}, {"image": blue(picture(1)),
                                                                              "negative": True}]
    plain, told = (predictor.predict(predictor.memorise(some), blue(picture(2))) for some in (rows[:1], rows))
    assert not np.array_equal(plain.mask, told.mask)
    with pytest.raises(FssError, match="all supports are negative"):
        predictor.memorise(rows[1:])
    with pytest.raises(FssError, match="method 'prior' reads no `prompt`"):
        predictor.memorise(rows, prompt="a red box")
    with pytest.warns(UserWarning, match="'prior' reads no names"):
        predictor.memorise(rows[:1], "box")
    missing = {"image": "there is no such photo.jpg", "negative": True}
    with pytest.raises(FssError, match=r"supports\[1\]: method 'ssp' uses no negative examples"):
        Predictor(registry.build("ssp", "debug")).memorise([rows[0], missing])
    box = {"image": "there is no such photo.jpg", "box": [0, 0, 5, 5], "negative": True}
    with pytest.raises(FssError, match=r"supports\[1\]: method 'sansa' uses negative photos, but no marks on them"):
        Predictor(registry.build("sansa", "debug")).memorise([rows[0], box])
