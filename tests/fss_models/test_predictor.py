"""The Python API: what it exports, that its masks are those of the labelling pipeline, and its one-line errors."""

from __future__ import annotations

import doctest
import io
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

import fss_models
from fss_models import FssError, MaskSettings, Predictor, load
from fss_models.marks import rle_json
from fss_models.predictor import read_photo
from pipelines.config.mask_request import MaskRequest
from pipelines.config.wanted import Wanted
from pipelines.inference.labeler import Labeler
from pipelines.inference.supports import build_support_set

SIDE = 96


@pytest.fixture(scope="module", autouse=True)
def _what_ships() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("FSS_SHIPPED")
        yield


@pytest.fixture(scope="module")
def predictor(_what_ships: None) -> Predictor:
    return load("shipped", "cpu")


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    """Discs on noise, the first one marked."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(4):
        photo = rng.integers(0, 120, (SIDE + 8 * number, SIDE, 3), dtype=np.uint8)
        photo[disc(photo.shape[0], 40 + 4 * number)] = (230, 40, 30)
        found.append(photo)
    return found


def disc(height: int, x: int) -> np.ndarray:
    ys, xs = np.mgrid[:height, :SIDE]
    return (xs - x) ** 2 + (ys - 48) ** 2 < 20**2


def png(photo: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(photo).save(data, "PNG")
    return data.getvalue()


def test_what_the_package_exports_is_fixed() -> None:
    assert fss_models.__all__ == [
        "BundleInfo", "FssError", "MaskSettings", "MemorisedSupports", "ObjectMask", "PhotoMask", "Predictor",
        "Segmenter", "build", "list_methods", "load", "register_method"]
    for name in fss_models.__all__:
        assert getattr(fss_models, name).__doc__
    assert (Path(fss_models.__file__).parent / "py.typed").is_file()
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fss_models.nothing


def test_importing_the_package_loads_no_torch_and_predicting_no_ray() -> None:
    script = ("import sys, fss_models; assert 'torch' not in sys.modules; fss_models.load; "
              "print(*(m for m in ('ray', 'mlflow', 'pyarrow', 'fsspec', 'pipelines') if m in sys.modules))")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("batch", [1, 3])
def test_masks_and_probabilities_are_those_of_a_labelling_job(predictor: Predictor, photos: list[np.ndarray],
                                                              batch: int) -> None:
    marks = [(photos[0], {"mask": rle_json(disc(SIDE, 40))}), (photos[1], {"box": [24, 28, 64, 68]})]
    labeler = Labeler("shipped")
    one = build_support_set("disc", [(png(p), m) for p, m in marks])
    request = MaskRequest(support_ids=(labeler.add_support(one),), prevalence=0.8, threshold=0.4)
    labels = labeler.label_classes([png(p) for p in photos], request, batch)
    memory = predictor.memorise([{"image": p, **m} for p, m in marks])
    found = list(predictor.predict_many(memory, photos, MaskSettings(prevalence=0.8, threshold=0.4), batch=batch))
    assert len(found) == len(labels) == 4
    for mask, label in zip(found, labels, strict=True):
        theirs = label[0]  # type: ignore[index]
        rle = {"size": [theirs.height, theirs.width], "counts": theirs.counts.encode()}
        assert np.array_equal(mask.mask, coco.decode(rle).astype(bool))
        assert (mask.score, mask.presence, mask.quality, mask.status) == (theirs.score, theirs.presence, theirs.quality,
                                                                          theirs.status)


def test_a_photo_may_be_an_array_a_picture_or_a_file_and_files_are_turned_upright(
    predictor: Predictor, photos: list[np.ndarray], tmp_path: Path
) -> None:
    file, mask = tmp_path / "a.png", tmp_path / "mask.png"
    turned = Image.fromarray(np.rot90(photos[0]).copy())
    exif = turned.getexif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise: as photos[0]
    turned.save(file, exif=exif)
    Image.fromarray(disc(SIDE, 40)).save(mask)
    forms = [{"image": photos[0], "mask": disc(SIDE, 40)}, {"image": Image.fromarray(photos[0]), "mask": str(mask)},
             {"image": file, "mask": mask}]
    found = [predictor.predict(predictor.memorise([form]), photos[2]) for form in forms]
    assert np.array_equal(found[0].mask, found[1].mask)
    assert np.array_equal(found[0].mask, found[2].mask)
    memory = predictor.memorise([forms[0]])
    assert np.array_equal(predictor.predict(memory, file).mask, predictor.predict(memory, photos[0]).mask)


def test_a_pillow_photo_is_read_as_its_file_is(tmp_path: Path) -> None:
    """16-bit grey levels are scaled, transparent pixels are white: Pillow's own conversion clips and blackens them."""
    ramp = (np.arange(256 * 4).reshape(4, 256) % 256 * 257).astype(np.uint16)
    for number, image in enumerate((Image.fromarray(ramp), Image.new("RGBA", (4, 4)), Image.new("LA", (4, 4)))):
        file = tmp_path / f"{number}.png"
        image.save(file)
        assert np.array_equal(read_photo(image), read_photo(file))
        with Image.open(file) as opened:
            assert np.array_equal(read_photo(opened), read_photo(file))
    with pytest.raises(FssError, match="supports: floating point pixels have no agreed range"):
        read_photo(Image.new("F", (4, 4)), "supports")


def test_a_pillow_mask_is_read_as_its_file_is(predictor: Predictor, photos: list[np.ndarray], tmp_path: Path) -> None:
    """Would catch a threshold of 128 on grey levels: a dark colour of a palette, and levels 0 and 1, are the object."""
    halves = disc(SIDE, 40) * np.where(np.arange(SIDE) < 40, 1, 15).astype(np.uint8)
    voc = Image.fromarray(halves)
    voc.putpalette([0, 0, 0, 128, 0, 0, *[0] * 39, 192, 128, 128])  # VOC's colours of the classes 1 and 15
    levels = Image.fromarray(disc(SIDE, 40).astype(np.uint8))
    wanted = predictor.predict(predictor.memorise([{"image": photos[0], "mask": disc(SIDE, 40)}]), photos[1])
    for number, image in enumerate((voc, levels)):
        file = tmp_path / f"{number}.png"
        image.save(file)
        for mask in (file, image, Image.open(file)):
            found = predictor.predict(predictor.memorise([{"image": photos[0], "mask": mask}]), photos[1])
            assert (found.score, found.mask.tolist()) == (wanted.score, wanted.mask.tolist()), (number, mask)
    Image.fromarray(disc(SIDE, 40)).convert("L").save(tmp_path / "lossy.jpg")
    with pytest.raises(FssError, match=r"supports\[0\]\.mask: JPEG is lossy"):
        predictor.memorise([{"image": photos[0], "mask": Image.open(tmp_path / "lossy.jpg")}])


def test_photos_are_read_as_they_are_needed(predictor: Predictor, photos: list[np.ndarray]) -> None:
    given: list[int] = []

    def stream() -> Iterator[np.ndarray]:
        for number in range(6):
            given.append(number)
            yield photos[0]

    memory = predictor.memorise([{"image": photos[0], "mask": disc(SIDE, 40)}])
    masks = predictor.predict_many(memory, stream(), batch=2)
    next(masks)
    assert given == [0, 1]
    assert len(list(masks)) == 5


@pytest.mark.parametrize(("row", "line"), [
    ({"image": np.zeros((8, 8), np.uint8), "box": [0, 0, 4, 4]}, r"supports\[0\]: a photo is an array \[H, W, 3\]"),
    ({"box": [0, 0, 4, 4]}, r"supports\[0\]: image is missing"),
    ({"image": "no.jpg", "box": [0, 0, 4, 4]}, "no.jpg: there is no such photo"),
    ({"image": np.zeros((8, 8, 3), np.uint8), "mask": np.zeros((8, 9), bool)}, "the mask is 8 x 9"),
    ({"image": np.zeros((8, 8, 3), np.uint8), "mask": "no.png"}, "there is no such mask"),
    ({"image": np.zeros((8, 8, 3), np.uint8), "box": (0, 0, 40, 4)}, "lies outside its photo"),
    ({"image": np.zeros((8, 8, 3), np.uint8)}, "needs exactly one of mask, box, points, scribble"),
])
def test_a_wrong_support_is_refused_in_one_line(predictor: Predictor, row: dict[str, object], line: str) -> None:
    with pytest.raises(FssError, match=line):
        predictor.memorise([row])


def test_wrong_bundles_and_settings(tmp_path: Path) -> None:
    with pytest.raises(FssError, match="there is no bundle here"):
        load(tmp_path)
    with pytest.raises(FssError, match="no bundle 'nothing' ships"):
        load("shipped:nothing")
    with pytest.raises(FssError, match="threshold is 1, not between 0 and 1"):
        MaskSettings(threshold=1)


def test_settings_have_the_defaults_of_recipes() -> None:
    """They are stated twice, because this package does not know recipes."""
    wanted = Wanted()
    assert MaskSettings() == MaskSettings(**{f.name: getattr(wanted, f.name) for f in fields(MaskSettings)})


@pytest.mark.parametrize("name", ["predictor", "registry"])
def test_the_examples_in_docstrings_run(name: str) -> None:
    found = doctest.testmod(import_module(f"fss_models.{name}"), optionflags=doctest.ELLIPSIS)
    assert (found.failed, found.attempted > 0) == (0, True)
