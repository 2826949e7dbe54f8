"""Several classes in one pass: masks equal those of single jobs, photos are encoded once, overlaps are resolved."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from fss_models import registry
from fss_models.errors import FssError
from fss_models.forms import read_form
from fss_models.marks import rle_json
from pipelines.bundles.bundle import save_bundle
from pipelines.config.mask_request import MaskRequest
from pipelines.inference.label_sets import read_label_set
from pipelines.inference.labeler import Labeler
from pipelines.inference.masks import Label, Labels, PhotoFailure, semantic_map
from pipelines.inference.supports import Support, SupportSet
from pipelines.serving.requests import SegmentRequest
from tests.serving.helpers import ball, encoded

METHODS = ("prior", "fssam", "sansa")


def support_set(name: str, *seeds: int, invert: bool = False) -> SupportSet:
    """One photo for each seed; with `invert` the class is everything but the ball."""
    found = []
    for seed in seeds:
        photo, mask = ball(seed)
        found.append(Support(encoded(photo, "PNG"), {"mask": rle_json(~mask if invert else mask)}))
    return SupportSet(name, tuple(found))


SETS = (support_set("ball", 1000), support_set("noise", 1001, 1002, invert=True), support_set("again", 1003))


@pytest.fixture(scope="module", params=METHODS)
def labeler(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Labeler]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    url = str(tmp_path_factory.mktemp("bundle"))
    save_bundle(url, registry.build(request.param, "nano" if request.param == "prior" else "debug"))
    yield Labeler(url)
    torch.set_num_threads(before)


def photos(count: int = 6) -> list[bytes]:
    return [encoded(ball(s)[0]) for s in range(count)]


def pixels(label: Label) -> np.ndarray:
    mask: np.ndarray = coco.decode({"size": [label.height, label.width], "counts": label.counts.encode()})
    return mask.astype(bool)


def found(results: list[Labels | PhotoFailure]) -> list[Labels]:
    assert not any(isinstance(r, PhotoFailure) for r in results)
    return [r for r in results if not isinstance(r, PhotoFailure)]


def test_one_pass_is_as_many_jobs(labeler: Labeler, monkeypatch: pytest.MonkeyPatch) -> None:
    """The masks are equal bit for bit, whatever the classes' shots, and the encoder sees every photo once."""
    ids = tuple(labeler.add_support(s) for s in SETS)
    alone = [labeler.label(photos(), i, 4, 0.4) for i in ids]
    seen: list[int] = []
    encode = labeler.model.encode
    monkeypatch.setattr(labeler.model, "encode", lambda images: seen.append(len(images)) or encode(images))
    together = labeler.label_classes(photos(), MaskRequest(support_ids=ids, threshold=0.4), 4)
    assert [list(labels) for labels in found(together)] == [list(one) for one in zip(*alone, strict=True)]
    assert seen == [4, 4]  # six photos in two padded batches
    assert len({labels[0].counts for labels in found(together)}) > 1


def test_several_classes_a_call_are_the_same_masks(labeler: Labeler) -> None:
    ids = tuple(labeler.add_support(s) for s in SETS)
    one = found(labeler.label_classes(photos(), MaskRequest(support_ids=ids), 4))
    many = found(labeler.label_classes(photos(), MaskRequest(support_ids=ids, pairs=8), 4))
    people = found(labeler.label_mixed(photos(3), [MaskRequest(support_ids=ids[:n]) for n in (3, 1, 2)], 4))
    assert [len(labels) for labels in people] == [3, 1, 2]
    for some in (many, people):
        for labels, wanted in zip(some, one, strict=False):
            for label, other in zip(labels, wanted, strict=False):
                assert (pixels(label) == pixels(other)).mean() > 0.999
                assert label.score == pytest.approx(other.score, abs=1e-4)


def test_bad_photos_are_results(labeler: Labeler) -> None:
    ids = tuple(labeler.add_support(s) for s in SETS)
    results = labeler.label_classes([b"no photo", *photos(1)], MaskRequest(support_ids=ids), 2)
    assert isinstance(results[0], PhotoFailure)
    assert len(found(results[1:])[0]) == 3


def test_resolved_overlaps(labeler: Labeler) -> None:
    """No pixel has two classes, no pixel is lost, and each belongs to the class with the highest weight."""
    ids = tuple(labeler.add_support(s) for s in SETS)
    kept = found(labeler.label_classes(photos(), MaskRequest(support_ids=ids, threshold=0.4), 4))
    cut = found(labeler.label_classes(photos(), MaskRequest(support_ids=ids, threshold=0.4, overlaps="resolve"), 4))
    overlapping = 0
    for before, after in zip(kept, cut, strict=True):
        whole, parts = np.stack([pixels(b) for b in before]), np.stack([pixels(a) for a in after])
        overlapping += int((whole.sum(axis=0) > 1).sum())
        assert parts.sum(axis=0).max() <= 1
        assert (parts.any(axis=0) == whole.any(axis=0)).all()
        assert not (parts & ~whole).any()
        assert [b.score for b in before] == [a.score for a in after]
        assert [a.area for a in after] == parts.sum(axis=(1, 2)).tolist()
    assert overlapping > 0  # else the test resolves nothing


def test_a_pixel_goes_to_the_surest_class() -> None:
    """The weight is probability times score; of equal ones the first wins; below the threshold no class wins."""
    logits = [torch.full((1, 4), 1.0), torch.tensor([[2.0, 2.0, 1.0, -3.0]])]
    assert semantic_map(logits, [1.0, 1.0], (1, 4), 0.0, corners=False).tolist() == [[2, 2, 1, 1]]
    assert semantic_map(logits, [1.0, 0.5], (1, 4), 0.0, corners=False).tolist() == [[1, 1, 1, 1]]
    assert semantic_map(logits, [0.0, 0.0], (1, 4), 0.0, corners=False).tolist() == [[1, 1, 1, 1]]
    assert semantic_map(logits, [1.0, 1.0], (1, 4), 1.5, corners=False).tolist() == [[2, 2, 0, 0]]


# ---- what people write -------------------------------------------------------------------------------------------

def class_folder(root: Path) -> Path:
    """A label set: `ball` is a folder with masks in both spellings, `noise` a folder with supports.json."""
    for name, seed, photo, mask in (("ball", 1, "a.jpg", "a.png"), ("ball", 2, "b.png", "b_mask.png"),
                                    ("noise", 3, "x.jpg", "shown.png")):
        (root / name).mkdir(parents=True, exist_ok=True)
        pixels, inside = ball(seed)
        (root / name / photo).write_bytes(encoded(pixels, "PNG" if photo.endswith("png") else "JPEG"))
        (root / name / mask).write_bytes(encoded(inside.astype(np.uint8) * 255, "PNG"))
    listed = {"supports": [{"image": "x.jpg", "mask": "shown.png"}]}
    (root / "noise" / "supports.json").write_text(json.dumps(listed))
    return root


def test_label_sets_of_folders_and_files(tmp_path: Path) -> None:
    root = class_folder(tmp_path / "classes")
    found = read_label_set(str(root))
    assert [(s.class_name, len(s.supports)) for s in found] == [("ball", 2), ("noise", 1)]
    assert found[0].supports[1].mark["mask"] == rle_json(ball(2)[1])
    assert read_label_set(str(root / "ball")) == [found[0]]
    (root / "noise" / "images").mkdir()
    (root / "noise" / "x.jpg").rename(root / "noise" / "images" / "x.jpg")
    (root / "noise" / "supports.json").write_text('{"supports": [{"image": "images/x.jpg", "mask": "shown.png"}]}')
    assert read_label_set(str(root / "noise")) == [found[1]]  # not a class "images"
    (root / "noise" / "images" / "x.jpg").rename(root / "noise" / "x.jpg")
    both = [{"class_name": "ball", "supports": [{"image": f"classes/ball/{i}", "mask": f"classes/ball/{m}"} for i,
                                                m in (("a.jpg", "a.png"), ("b.png", "b_mask.png"))]},
            {"class_name": "noise", "supports": [{"image": "classes/noise/x.jpg", "mask": "classes/noise/shown.png"}]}]
    (tmp_path / "both.json").write_text(json.dumps({"classes": both}))
    assert read_label_set(str(tmp_path / "both.json")) == found
    (tmp_path / "one.json").write_text(json.dumps(both[0]))
    assert read_label_set(str(tmp_path / "one.json")) == [found[0]]


@pytest.mark.parametrize(("spoil", "line"), [
    (lambda root: (root / "ball" / "a.png").unlink(), "a.jpg has no mask"),
    (lambda root: (root / "ball" / "b.png").unlink(), "b_mask.png is a mask without a photo"),
    (lambda root: (root / "ball" / "b_mask.png").rename(root / "ball" / "b_mask.jpg"),
     "b_mask.jpg is a mask in a lossy format"),
    (lambda root: (root / "ball" / "a.jpg").rename(root / "a.jpg"), "a.jpg lies beside the folders of classes"),
    (lambda root: (root / "noise" / "supports.json").write_text("[]"), "is not a JSON object"),
    (lambda root: (root / "noise" / "supports.json").write_text('{"class_name": "ball", "supports": []}'),
     "there are no supports"),
    (lambda root: (root / "empty").mkdir() or (root / "empty" / "note.txt").write_text("x"), "there are no supports"),
])
def test_mistakes_in_a_folder_are_one_line(tmp_path: Path, spoil: Any, line: str) -> None:
    root = class_folder(tmp_path / "classes")
    spoil(root)
    with pytest.raises(FssError, match=line) as error:
        read_label_set(str(root))
    assert "\n" not in str(error.value)


def test_two_classes_of_one_name_or_one_set_are_refused(tmp_path: Path) -> None:
    root = class_folder(tmp_path)
    one = {"supports": [{"image": "noise/x.jpg", "mask": "noise/shown.png"}]}
    for names, line in ((("a", "a"), "class 'a' has the same name as another class"),
                        (("a", "b"), "class 'b' has the same supports as another class")):
        (root / "set.json").write_text(json.dumps({"classes": [{"class_name": n, **one} for n in names]}))
        with pytest.raises(FssError, match=line):
            read_label_set(str(root / "set.json"))


@pytest.mark.parametrize(("body", "line"), [
    ({"support_id": "a", "support_ids": ["a"]}, "give one of them"),
    ({"support_ids": []}, "support_ids: list should have at least 1 item"),
    ({"support_ids": ["a", "a"]}, "each once"),
    ({"support_ids": ["a"], "overlaps": "resolve"}, "overlaps is resolve, but there is one class"),
    ({"support_ids": ["a", "b"], "overlaps": "merge"}, "overlaps: is 'merge', but should be 'keep' or 'resolve'"),
    ({"support_ids": ["a", "b"], "pairs": -1}, "pairs: is -1, but should be greater than or equal to 0"),
])
def test_requests_with_mistakes(body: dict[str, Any], line: str) -> None:
    with pytest.raises(FssError, match=line):
        read_form(SegmentRequest, {"images": ["QUJD"], **body}, "request")


def test_a_request_is_read_as_it_was_written() -> None:
    for request in (MaskRequest(support_ids=("a",)), MaskRequest(support_ids=("a", "b"), overlaps="resolve", pairs=16)):
        assert read_form(SegmentRequest, {"images": ["QUJD"], **request.body()}, "").masks == request
