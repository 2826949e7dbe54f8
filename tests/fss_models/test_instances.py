"""One mask for each object: pieces, the method's own instances, prompts of SAM 2's decoder."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from scipy import ndimage

from fss_models import FssError, MaskSettings, ObjectMask, Predictor, registry
from fss_models.clip import Instances, Prediction
from fss_models.instances import (
    SplitRules,
    add_prompted,
    check_instances,
    deepest_points,
    drop_duplicates,
    split_mask,
)
from fss_models.methods.sansa.model import Sansa
from fss_models.segmenter import Segmenter
from pipelines.config.mask_request import MaskRequest
from pipelines.inference.instances import with_instances
from pipelines.inference.masks import make_label
from tests.serving.helpers import ball

PIECES = SplitRules(source="pieces", speck=0.001)


def union(found: list[ObjectMask] | tuple[ObjectMask, ...], like: np.ndarray) -> np.ndarray:
    joined: np.ndarray = np.logical_or.reduce([np.zeros_like(like), *(one.mask for one in found)])
    return joined


def scene() -> np.ndarray:
    """A ring, a block that touches another in a corner, and a speck."""
    mask = np.zeros((60, 80), dtype=bool)
    mask[2:22, 2:22] = True
    mask[8:15, 8:15] = False
    mask[30:40, 30:40] = mask[40:50, 40:50] = True
    mask[0, 79] = True
    return mask


def test_pieces_keep_their_holes_and_corners_connect() -> None:
    mask = scene()
    found = split_mask(mask, 0.7, PIECES)
    assert sorted(int(one.mask.sum()) for one in found) == [200, 351]
    assert {one.score for one in found} == {0.7}
    assert (union(found, mask) == mask).sum() == mask.size - 1  # all but the speck
    assert (union(split_mask(mask, 0.7, replace(PIECES, speck=0.0)), mask) == mask).all()


def test_the_largest_piece_is_an_instance_however_small() -> None:
    mask = np.zeros((100, 100), dtype=bool)
    mask[3, 3] = mask[50, 50:52] = True
    found = split_mask(mask, 0.5, replace(PIECES, speck=0.1))
    assert [int(one.mask.sum()) for one in found] == [2]
    assert split_mask(np.zeros((5, 5), dtype=bool), 0.5, PIECES) == []


@pytest.mark.parametrize("speck", [0.0, 0.001])
def test_memory_does_not_grow_with_the_number_of_pieces(speck: float) -> None:
    """401 pieces of a mask, all kept or one: a plane for each would be 401 times the mask."""
    mask = np.zeros((1000, 1000), dtype=bool)
    mask[5::50, 5::50] = mask[6::50, 5::50] = True
    mask[:40, 960:] = True
    label = make_label(coco.encode(np.asfortranarray(mask, dtype=np.uint8)), 0.7)
    request = MaskRequest(support_ids=("a",), instances="pieces", speck=speck)
    tracemalloc.start()
    found = with_instances(label, request, None, corners=False).instances or ()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == (401 if speck == 0 else 1)
    assert peak < 30 * mask.nbytes
    numbers, count = ndimage.label(mask, np.ones((3, 3)))
    pieces = [coco.encode(np.asfortranarray(numbers == n, dtype=np.uint8)) for n in range(1, count + 1)]
    wanted = [one["counts"].decode() for one in pieces if coco.area(one) >= speck * mask.size]
    assert [one.counts for one in found] == wanted


def own(logits: torch.Tensor, scores: list[float]) -> Instances:
    size = torch.tensor([[0, 0, *logits.shape[1:]]])
    return Instances(pair=torch.zeros(len(scores), dtype=torch.int64), scores=torch.tensor(scores), logits=logits,
                     window=size)


def test_own_instances_are_cut_from_their_window_and_duplicates_are_dropped() -> None:
    """Would catch a window of another order, duplicates judged by IoU, and pixels that no instance has."""
    logits = torch.full((3, 20, 20), -5.0)
    logits[0, 10:, 5:10] = logits[1, 10:, 10:20] = logits[2, 10:13, 5:9] = 5.0  # the third lies within the first
    found = replace(own(logits, [0.9, 0.6, 0.8]), window=torch.tensor([[10, 0, 20, 20]]))
    mask = np.zeros((40, 80), dtype=bool)
    mask[:, 20:] = True
    split = split_mask(mask, 0.3, SplitRules(source="model"), found)
    assert [round(one.score, 2) for one in split] == [0.9, 0.6]
    assert (union(split, mask) == mask).all()
    first, second = (one.mask for one in split)
    assert not (first & second).any()
    assert abs(int(np.nonzero(first)[1].max()) - 39) <= 1


def test_pieces_do_not_follow_the_instances_of_a_method() -> None:
    logits = torch.full((2, 10, 20), -5.0)
    logits[0, :, :10] = logits[1, :, 10:] = 5.0
    mask = np.ones((10, 20), dtype=bool)
    found = own(logits, [0.9, 0.8])
    assert len(split_mask(mask, 0.7, replace(PIECES, source="model"), found)) == 2
    assert len(split_mask(mask, 0.7, PIECES, found)) == 1


def test_pixels_of_duplicates_that_a_method_left_out_stay_in_the_mask_alone() -> None:
    """Would catch an instance that takes what another, suppressed one covered."""
    logits = torch.full((2, 20, 20), -5.0)
    logits[0, 2:8, 2:8] = logits[1, 2:8, 8:14] = 5.0
    mask = np.zeros((80, 80), dtype=bool)
    mask[8:32, 8:56] = mask[48:72, 48:72] = True
    split = split_mask(mask, 0.3, SplitRules(source="model"), own(logits, [0.9, 0.8]))
    assert (union(split, mask) == mask)[:40].all()
    assert not union(split, mask)[40:].any()


def test_duplicates_are_judged_by_the_smaller_mask_and_ties_go_to_the_first() -> None:
    masks = torch.zeros(5, 10, 10, dtype=torch.bool)
    masks[0] = True
    masks[1, :5, :5] = True  # a fifth of an IoU, but all of the smaller mask
    masks[2, :5], masks[3, 3:8] = True, True  # two fifths of the smaller
    scores = torch.tensor([0.5, 0.5, 0.9, 0.9, 1.0])
    assert drop_duplicates(masks, scores) == [2, 3]
    assert drop_duplicates(masks[:2], scores[:2]) == [0]
    assert drop_duplicates(masks[:0], scores[:0]) == []


def test_touching_discs_have_a_deepest_point_each() -> None:
    rows, columns = np.mgrid[:60, :90]
    mask = ((rows - 30) ** 2 + (columns - 25) ** 2 < 400) | ((rows - 30) ** 2 + (columns - 62) ** 2 < 400)
    points = deepest_points(mask)
    assert any(np.abs(points[:, 0] - 25) + np.abs(points[:, 1] - 30) <= 2)
    assert any(np.abs(points[:, 0] - 62) + np.abs(points[:, 1] - 30) <= 2)
    assert mask[points[:, 1].astype(int), points[:, 0].astype(int)].all()
    assert len(deepest_points(np.zeros((4, 4), dtype=bool))) == 0
    assert len(deepest_points(scene(), most=2)) == 2


def test_a_method_without_a_source_refuses_it() -> None:
    check_instances(Sansa, "prompts")
    with pytest.raises(FssError, match=r"'sansa' has no instances from 'model' \(use one of: pieces, prompts\)"):
        check_instances(Sansa, "model")
    with pytest.raises(FssError, match="instances is 'boxes'"):
        check_instances(Sansa, "boxes")  # type: ignore[arg-type]
    for name in registry.list_methods():
        method = registry.method_class(name)
        check_instances(method, "pieces")
        promptable = method.decode_points is not Segmenter.decode_points
        assert promptable == ("prompts" in method.instance_sources)


@pytest.mark.parametrize("method", ["sam2_frozen", "fssam", "fcp", "vrp_sam", "gf_sam", "matcher"])
def test_prompted_instances_are_a_split_of_the_mask(method: str) -> None:
    """With real decoders; and a pair's instances do not depend on the other pairs."""
    model = Predictor(registry.build(method, "debug"))
    (photo, mask), (other, _) = ball(1), ball(2)
    support = model.memorise([{"image": photo, "mask": mask}])
    settings = MaskSettings(instances="prompts", speck=0.0, threshold=0.49)
    together = list(model.predict_many(support, [photo, other], settings))
    for image, found in zip((photo, other), together, strict=True):
        assert found.instances is not None
        assert (union(found.instances, found.mask) == found.mask).all()
        assert [one.score for one in found.instances] == sorted((o.score for o in found.instances), reverse=True)
        (alone,) = model.predict_many(support, [image], settings)
        assert [o.score for o in alone.instances or ()] == [o.score for o in found.instances]
    plain = model.predict(support, photo, replace(settings, instances="none"))
    assert plain.instances is None
    assert (plain.mask == together[0].mask).all()


def test_prompts_find_what_a_given_mask_shows() -> None:
    """Two blocks of a given mask: the instances fill it, whatever a random decoder draws; without a level none."""
    model = registry.build("sansa", "debug").eval()
    photo, mask = ball(3)
    memory = Predictor(model).memorise([{"image": photo, "mask": mask}]).memory
    with torch.inference_mode():
        features = model.encode(model.prepare([photo]))
    logits = torch.full((1, model.side, model.side), -10.0)
    logits[0, :20, :20] = logits[0, -20:, -20:] = 10.0
    given = Prediction(logits=logits, scores=torch.ones(1))
    found = add_prompted(model, given, memory, features, torch.zeros(1, 2, dtype=torch.int64), [0.0])
    assert found.instances is not None
    split = split_mask((logits[0] > 0).numpy(), 1.0, SplitRules(source="prompts", speck=0.0),
                       found.instances.of_pair(0))
    assert (union(split, (logits[0] > 0).numpy()) == (logits[0] > 0).numpy()).all()
    none = add_prompted(model, given, memory, features, torch.zeros(1, 2, dtype=torch.int64), [None])
    assert none.instances is not None
    assert len(none.instances.scores) == 0


def test_prompts_leave_the_own_instances_of_other_pairs() -> None:
    """A batch of two requests, one with prompts: the other one's instances, on a map of another size, stay."""
    model = registry.build("sansa", "debug").eval()
    photo, mask = ball(3)
    memory = Predictor(model).memorise([{"image": photo, "mask": mask}]).memory
    with torch.inference_mode():
        features = model.encode(model.prepare([photo]))
    logits = torch.full((3, model.side, model.side), -10.0)
    logits[1, :20, :20] = 10.0
    own = Instances(pair=torch.tensor([0, 0, 1]), scores=torch.tensor([0.9, 0.8, 0.7]), logits=torch.rand(3, 11, 9),
                    window=torch.tensor([[2, 1, 9, 8]]).repeat(3, 1))
    given = Prediction(logits=logits, scores=torch.ones(3), instances=own)
    found = add_prompted(model, given, memory, features, torch.zeros(3, 2, dtype=torch.int64), [None, 0.0, 0.0])
    assert found.instances is not None
    kept, prompted, nothing = (found.instances.of_pair(row) for row in range(3))
    assert torch.equal(kept.logits, own.logits[:2])
    assert torch.equal(kept.scores, own.scores[:2])
    assert (kept.window.tolist(), prompted.window.tolist()) == ([[2, 1, 9, 8]], [[0, 0, 11, 9]])
    assert len(prompted.scores) >= 1
    assert not torch.equal(prompted.logits[0], own.logits[2])
    assert len(nothing.scores) == 0
