"""Kept features: the second job encodes nothing and gives the same masks; another model or setting finds nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from fss_models.marks import rle_json
from pipelines.config.mask_request import MaskRequest
from pipelines.inference import labeler as module
from pipelines.inference.kept_features import FeatureKeeper, KeptPhotos, half, padded
from pipelines.inference.labeler import Labeler
from pipelines.inference.masks import PhotoFailure
from pipelines.inference.supports import Support, SupportSet
from tests.serving.helpers import ball, encoded


def support_set(seed: int) -> SupportSet:
    photo, mask = ball(seed)
    return SupportSet("ball", (Support(encoded(photo, "PNG"), {"mask": rle_json(mask)}),))


PHOTOS = [*(encoded(ball(s)[0]) for s in range(3)), b"no photo", *(encoded(ball(s)[0]) for s in range(3, 6))]


def labelled(labeler: Labeler, *seeds: int, **more: Any) -> list[Any]:
    ids = tuple(labeler.add_support(support_set(s)) for s in seeds)
    return labeler.label_classes(PHOTOS, MaskRequest(support_ids=ids, **more), 4)


def test_labelling_again_encodes_nothing(bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with other supports, classes and thresholds; masks, failures and their order are those of a first job."""
    first = Labeler(bundle, features_url=str(tmp_path / "kept"))
    wanted = labelled(first, 1000)
    fresh = labelled(Labeler(bundle, features_url=str(tmp_path / "other")), 1001, 1002, threshold=0.4)
    again = Labeler(bundle, features_url=str(tmp_path / "kept"))
    for seed in (1000, 1001, 1002):
        again.add_support(support_set(seed))
    monkeypatch.setattr(again.model, "encode", lambda _: pytest.fail("a photo was encoded"))
    monkeypatch.setattr(again._decode, "batches", lambda *_: pytest.fail("a photo was decoded"))
    assert labelled(again, 1000) == wanted
    assert labelled(again, 1001, 1002, threshold=0.4) == fresh
    assert isinstance(wanted[3], PhotoFailure)


def test_half_precision_hardly_changes_masks(bundle: str, tmp_path: Path) -> None:
    kept, plain = labelled(Labeler(bundle, features_url=str(tmp_path)), 1000), labelled(Labeler(bundle), 1000)
    areas = [(k[0].area, p[0].area) for k, p in zip(kept, plain, strict=True) if not isinstance(k, PhotoFailure)]
    assert all(abs(a - b) <= 0.01 * b for a, b in areas)


def test_another_setting_finds_nothing(tmp_path: Path) -> None:
    photos = KeptPhotos([0], torch.tensor([[3, 4]]), {"f": torch.ones(1, 2, 1, 1, dtype=torch.float16)}, {})
    FeatureKeeper(str(tmp_path), {"precision": "float32"}).write([b"a"], 1, photos)
    assert FeatureKeeper(str(tmp_path), {"precision": "bfloat16"}).read([b"a"], 1) is None
    mine = FeatureKeeper(str(tmp_path), {"precision": "float32"})
    assert mine.read([b"b"], 1) is None
    assert mine.read([b"a"], 2) is None  # a model's last digits depend on the batch
    found = mine.read([b"a"], 1)
    assert found is not None
    assert (found.rows, found.sizes.tolist(), found.failures) == ([0], [[3, 4]], {})


def test_a_newer_version_finds_nothing(bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its preprocessing or its model may compute other features."""
    labelled(Labeler(bundle, features_url=str(tmp_path)), 1000)
    monkeypatch.setattr(module, "package_version", lambda: "99")
    newer = Labeler(bundle, features_url=str(tmp_path))
    assert newer.keeper is not None
    assert newer.keeper.read(PHOTOS, 4) is None


@pytest.mark.parametrize("damage", [lambda d: d[:-7], lambda d: b"", lambda d: d[:5], lambda d: b"\xff" * 8 + d[8:],
                                    lambda d: d.replace(b"rows", b"rowz"), lambda d: d.replace(b"F16", b"F99")])
def test_photos_of_a_damaged_file_are_encoded_again(bundle: str, tmp_path: Path,
                                                    damage: Callable[[bytes], bytes]) -> None:
    """Would catch a job that ends with a raw error of a library, or writes other masks."""
    wanted = labelled(Labeler(bundle, features_url=str(tmp_path)), 1000)
    file = next(tmp_path.rglob("*.safetensors"))
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert labelled(Labeler(bundle, features_url=str(tmp_path)), 1000) == wanted
    assert file.read_bytes() == whole


def test_kept_features_are_bounded_by_bytes(bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch calls that together hold more than the bound, and one that is larger than it and waits for ever."""
    monkeypatch.setattr(module, "KEPT_BYTES", 1)
    labeler, most, inside = Labeler(bundle, features_url=str(tmp_path)), 0, 0
    labeler.add_support(support_set(1000))
    read = labeler.keeper.read  # type: ignore[union-attr]

    def counted(*args: Any) -> Any:
        nonlocal most, inside
        inside += 1
        most = max(most, inside)
        time.sleep(0.05)
        inside -= 1
        return read(*args)

    monkeypatch.setattr(labeler.keeper, "read", counted)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: labelled(labeler, 1000), range(3)))
    assert found[0] == found[1] == found[2]
    assert most == 1
    assert labeler._kept.free == 1


def test_values_beyond_half_precision_are_cut() -> None:
    maps = half({"f": torch.tensor([[[[1e6]]], [[[2.0]]], [[[9.0]]]])}, 2)
    features = padded(maps, torch.tensor([[5, 5], [6, 6]]), 3)
    assert features.maps["f"].flatten().tolist() == [65504.0, 2.0, 0.0]
    assert len(features) == 3
