"""Labels for plug-ins: in this process and by a service they are the same, and mistakes are one line."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fss_models.errors import FssError
from pipelines.inference.masks import PhotoFailure, mean_iou
from pipelines.integrations import cvat, fiftyone
from pipelines.integrations.photo_labeler import PhotoLabeler, _requests, photo_bytes
from tests.integrations.scenes import CLASSES, photo_folder, supports_folder
from tests.serving.helpers import Running


@pytest.fixture(scope="module")
def supports(tmp_path_factory: pytest.TempPathFactory) -> str:
    return supports_folder(tmp_path_factory.mktemp("given") / "supports")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return [p.read_bytes() for p in photo_folder(tmp_path_factory.mktemp("scenes") / "photos", 3)]


def test_a_service_labels_as_this_process_does(supports: str, photos: list[bytes], bundle: str,
                                               service: Running) -> None:
    here, there = PhotoLabeler(supports, bundle=bundle, device="cpu"), PhotoLabeler(supports, url=service.url)
    assert here.classes == there.classes == CLASSES
    given = [photos[0], b"no photo", photos[1]]
    found, same = here.label(given), there.label(given)
    there.close()
    assert isinstance(found[1], PhotoFailure)
    assert found[1] == same[1]
    assert [label.area > 1000 for label in found[0]] == [True, True]
    assert (mean_iou(found, same) or 0) > 0.99
    assert [label.score for label in found[2]] == pytest.approx([label.score for label in same[2]], abs=1e-3)
    assert here.label([]) == []


def test_large_requests_are_divided() -> None:
    given = [b"a" * 10, b"b" * 10, b"c" * 50, b"d"]
    assert [len(some) for some in _requests(given, 25)] == [2, 1, 1]
    assert [len(some) for some in _requests([b"x"] * 20, 1000)] == [8, 8, 4]


def test_pixels_of_any_mode_are_kept_and_not_turned(photos: list[bytes]) -> None:
    image = Image.open(io.BytesIO(photos[0]))
    array = np.asarray(image)
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    image.save(turned, "PNG", exif=exif)
    for given in (array, image, Image.open(turned)):
        found = Image.open(io.BytesIO(photo_bytes(given)))
        assert (np.asarray(found) == array).all()
        assert not found.getexif()
    assert Image.open(io.BytesIO(photo_bytes(image.convert("CMYK")))).mode == "RGB"
    assert Image.open(io.BytesIO(photo_bytes(array[..., 0]))).mode == "L"


@pytest.mark.parametrize(("given", "line"), [
    ({"url": "http://127.0.0.1:9", "bundle": "shipped"}, "a bundle and a device of its own"),
    ({"url": "http://127.0.0.1:9"}, "no service answers"),
    ({"threshold": 2.0}, "threshold"),
    ({"treshold": 0.5}, "treshold"),
    ({"exclusive": True, "overlaps": "keep"}, "one class at most"),
    ({"bundle": "/no/such/bundle"}, "there is no bundle here"),
])
def test_mistakes_are_one_line(given: dict[str, Any], line: str, supports: str) -> None:
    with pytest.raises(FssError, match=line) as caught:
        PhotoLabeler(supports, **given)
    assert "\n" not in str(caught.value)


def test_what_is_not_installed_is_named(supports: str, bundle: str, monkeypatch: pytest.MonkeyPatch,
                                        tmp_path: Path) -> None:
    for module in ("cvat_sdk", "cvat_sdk.auto_annotation", "fiftyone"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(FssError, match="cvat-sdk is not installed"):
        cvat.create(supports, bundle=bundle)
    with pytest.raises(FssError, match="fiftyone is not installed"):
        fiftyone.create_model(supports, bundle=bundle)
