"""The labeler with a real model: right masks, whatever else is in the batch, and failures among the results."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from fss_models.clip import Features, Images, Instances
from fss_models.errors import FssError
from fss_models.execution import Download
from fss_models.limits import LIMITS, PhotoLimits
from fss_models.marks import rle_json
from fss_models.run_lengths import encode_logits
from pipelines.config.mask_request import MaskRequest
from pipelines.inference import labeler as module
from pipelines.inference.calls import CallOutput
from pipelines.inference.labeler import Labeler
from pipelines.inference.masks import Label, PhotoFailure
from pipelines.inference.preparing import PhotoPreparer, resize_mode
from pipelines.inference.stages import ByteBudget
from pipelines.inference.support_files import SupportRequest, support_request, support_set_from_request
from pipelines.inference.supports import Support, SupportSet, UnknownSupportError
from tests.serving.helpers import ball, encoded, wait_for


def support_set(seed: int = 1000) -> SupportSet:
    """One photo with its mask."""
    photo, mask = ball(seed)
    return SupportSet("ball", (Support(encoded(photo, "PNG"), {"mask": rle_json(mask)}),))


def decoded(label: Label | PhotoFailure) -> np.ndarray:
    assert isinstance(label, Label), label
    mask: np.ndarray = coco.decode({"size": [label.height, label.width], "counts": label.counts.encode()})
    return mask.astype(bool)


def test_finds_the_ball(labeler: Labeler) -> None:
    """Would catch a mask that is transposed, shifted or of another size than its photo."""
    support = labeler.add_support(support_set())
    photos = [ball(s) for s in range(6)]
    for (photo, truth), label in zip(photos, labeler.label([encoded(p) for p, _ in photos], support), strict=True):
        found = decoded(label)
        assert found.shape == photo.shape[:2]
        assert (found & truth).sum() / (found | truth).sum() > 0.45
        assert isinstance(label, Label)
        rows, columns = np.nonzero(found)
        assert label.area == found.sum()
        box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert list(label.bbox) == [float(v) for v in box]
        assert 0 <= label.score <= 1


def test_company_does_not_matter(labeler: Labeler) -> None:
    """Would catch batches whose shape, and so rounding, depends on how many photos arrive together."""
    support = labeler.add_support(support_set())
    photos = [encoded(ball(s)[0]) for s in range(11)]
    together = labeler.label(photos, support, 4)
    assert [labeler.label([p], support, 4)[0] for p in photos] == together
    assert labeler.label(photos[::-1], support, 4)[::-1] == together


def test_bad_photos_are_results(labeler: Labeler) -> None:
    support = labeler.add_support(support_set())
    good = encoded(ball(1)[0])
    found = labeler.label([b"", good, good[: len(good) // 2], b"no photo", good], support, 2)
    assert [isinstance(r, PhotoFailure) for r in found] == [True, False, True, True, False]
    assert found[1] == found[4]


def test_limits_are_kept(bundle: str) -> None:
    small = Labeler(bundle, limits=PhotoLimits(max_pixels=10_000, max_bytes=4_000))
    support = small.add_support(support_set())
    pixels = small.label([encoded(np.zeros((101, 100, 3), dtype=np.uint8))], support)[0]
    size = small.label([encoded(np.random.default_rng(0).integers(0, 255, (90, 90, 3), dtype=np.uint8))], support)[0]
    assert isinstance(pixels, PhotoFailure)
    assert isinstance(size, PhotoFailure)
    assert "pixels" in pixels.reason
    assert "bytes" in size.reason


def test_threshold_moves_the_border(labeler: Labeler) -> None:
    support = labeler.add_support(support_set())
    photo = encoded(ball(2)[0])
    wide, narrow = (decoded(labeler.label([photo], support, 2, t)[0]) for t in (0.3, 0.7))
    assert narrow.sum() < wide.sum()
    assert not (narrow & ~wide).any()


def test_memories_are_bounded_and_come_back_from_storage(bundle: str, tmp_path: object) -> None:
    sets = [support_set(s) for s in (1000, 1001, 1002)]
    for one in sets:
        one.save(str(tmp_path))
    labeler = Labeler(bundle, supports_url=str(tmp_path), memories=2)
    photo = encoded(ball(2)[0])
    first = [labeler.label([photo], s.support_id)[0] for s in sets]
    assert len(labeler._memories) == 2
    assert [labeler.label([photo], s.support_id)[0] for s in sets] == first
    with pytest.raises(UnknownSupportError):
        labeler.label([photo], "0" * 16)


def test_another_bundle_than_the_given_one_labels_nothing(bundle: str, labeler: Labeler) -> None:
    same = Labeler(bundle, bundle_id=labeler.info.bundle_id)
    assert same.add_support(support_set()) == support_set().support_id
    with pytest.raises(FssError, match=f"{bundle}: the bundle is {labeler.info.bundle_id} now, no longer {'f' * 16}"):
        Labeler(bundle, bundle_id="f" * 16).add_support(support_set())


def test_mixed_support_sets_share_a_batch(labeler: Labeler) -> None:
    """Photos with support sets of different size in one batch get the masks that each gets alone."""
    one, two = support_set(1000), support_set(1001)
    both = SupportSet("ball", one.supports + two.supports)
    ids = [labeler.add_support(s) for s in (one, both)]
    photos = [encoded(ball(s)[0]) for s in range(4)]
    wanted = [MaskRequest(support_ids=(ids[i % 2],)) for i in range(4)]
    mixed = labeler.label_mixed(photos, wanted, 4)
    for photo, one, labels in zip(photos, wanted, mixed, strict=True):
        assert not isinstance(labels, PhotoFailure)
        alone, found = decoded(labeler.label([photo], one.support_ids[0], 4)[0]), decoded(labels[0])
        assert (alone & found).sum() / (alone | found).sum() > 0.999


def test_request_form_keeps_everything() -> None:
    assert support_set_from_request(SupportRequest(**support_request(support_set()))) == support_set()


def test_labels_are_those_of_a_plain_loop(labeler: Labeler) -> None:
    """Decode, resize, encode, segment, enlarge to a whole map, cut, encode: byte for byte, also for large photos."""
    support = labeler.add_support(support_set())
    small = [ball(s)[0] for s in range(3)]
    large = [np.ascontiguousarray(np.kron(small[0], np.ones((11, 9, 1), dtype=np.uint8)))]
    photos, model = small + large, labeler.model
    labels = labeler.label([encoded(p, "PNG") for p in photos], support, 4)
    with torch.inference_mode():
        pairs = torch.stack([torch.zeros(4, dtype=torch.int64), torch.arange(4)], dim=1)
        found = model.segment(labeler.memory(support), model.encode(model.prepare(photos)), pairs)
    assert large[0].shape[0] * large[0].shape[1] > 400_000
    for photo, logits, label in zip(photos, found.logits, labels, strict=True):
        turned = torch.nn.functional.interpolate(logits.T[None, None], size=photo.shape[1::-1], mode="bilinear",
                                                 align_corners=model.corners_aligned)[0, 0] > 0
        assert isinstance(label, Label)
        assert label.rle == coco.encode(turned.numpy().T.view(np.uint8))


def test_run_lengths_do_not_hold_the_model(labeler: Labeler, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first batch's run lengths wait here until the model has begun the second batch."""
    support, second, encode = labeler.add_support(support_set()), threading.Event(), labeler.model.encode
    calls: list[int] = []

    def counted(images: Images) -> Features:
        calls.append(len(images))
        if len(calls) == 2:
            second.set()
        return encode(images)

    def patient(*args: Any, **more: Any) -> Any:
        assert second.wait(30), "the model waits for run lengths"
        return encode_logits(*args, **more)

    monkeypatch.setattr(labeler.model, "encode", counted)
    monkeypatch.setattr(module, "encode_logits", patient)
    found = labeler.label([encoded(ball(s)[0]) for s in range(4)], support, 2)
    assert calls == [2, 2]
    assert not any(isinstance(f, PhotoFailure) for f in found)


def test_fast_preprocessing_labels_photos_at_their_size(bundle: str, labeler: Labeler) -> None:
    """A JPEG that is decoded at a quarter of its size gets nearly the mask of all its pixels, at its full size."""
    fast = Labeler(bundle, preprocessing="fast")
    photo = np.ascontiguousarray(np.kron(ball(3)[0], np.ones((16, 16, 1), dtype=np.uint8)))
    one, other = (by.label([encoded(photo)], by.add_support(support_set()), 1)[0] for by in (labeler, fast))
    assert decoded(other).shape == photo.shape[:2]
    both = decoded(one) & decoded(other)
    assert both.sum() / (decoded(one) | decoded(other)).sum() > 0.95


def test_fast_preprocessing_resizes_a_large_photo_as_published(labeler: Labeler) -> None:
    """One that must be shrunk; which way is quicker is a benchmark's matter (`photo_stages`)."""
    preparer, side = PhotoPreparer(labeler.model, LIMITS, 30.0, "fast"), labeler.model.side
    for height, mode in ((side - 1, "fast"), (side + 1, "published")):
        photo = ball(3, height, side)[0]
        assert resize_mode(photo, side) == mode
        ready = preparer.whole(encoded(photo, "PNG"))
        assert torch.equal(ready.pixels, labeler.model.prepare([photo], mode).pixels)


def test_a_byte_budget_lets_in_what_fits() -> None:
    budget, entered = ByteBudget(10), threading.Event()
    budget.acquire(25)  # larger than the limit, but alone
    thread = threading.Thread(target=lambda: (budget.acquire(4), entered.set()))
    thread.start()
    assert not entered.wait(0.1)
    budget.release(25)
    assert entered.wait(10)
    thread.join()


def test_a_labeler_that_is_let_go_leaves_memory_at_once(bundle: str) -> None:
    """Would catch a model of the former champion, or of a measurement, that stays on its GPU."""
    labeler = Labeler(bundle)
    labeler.label([encoded(ball(1)[0])], labeler.add_support(support_set()), 1)
    model = weakref.ref(labeler.model)
    gc.disable()
    try:
        del labeler
        wait_for(lambda: model() is None, 10)  # a thread may still be at the end of its work
    finally:
        gc.enable()


def test_instances_count_among_the_bytes_that_wait() -> None:
    one = Instances(pair=torch.zeros(3, dtype=torch.int64), scores=torch.ones(3), logits=torch.zeros(3, 8, 8),
                    window=torch.tensor([[0, 0, 8, 8]]))
    download = Download(torch.zeros(1, 5), ((1, 5),))
    assert CallOutput((), download, (), one).size == CallOutput((), download, ()).size + 3 * 8 * 8 * 4
