"""The labeler with a real model: right masks, whatever else is in the batch, and failures among the results."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from fss_models.errors import FssError
from fss_models.limits import PhotoLimits
from fss_models.marks import rle_json
from pipelines.config.mask_request import MaskRequest
from pipelines.inference.labeler import Labeler
from pipelines.inference.masks import Label, PhotoFailure
from pipelines.inference.support_files import SupportRequest, support_request, support_set_from_request
from pipelines.inference.supports import Support, SupportSet, UnknownSupportError
from tests.serving.helpers import ball, encoded


def support_set(seed: int = 1000) -> SupportSet:
    """One photo with its mask."""
    photo, mask = ball(seed)
    return SupportSet("ball", (Support(encoded(photo, "PNG"), {"mask": rle_json(mask)}),))


@pytest.fixture(scope="module")
def labeler(bundle: str) -> Iterator[Labeler]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Labeler(bundle)
    torch.set_num_threads(before)


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
