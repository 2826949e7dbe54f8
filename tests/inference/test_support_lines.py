"""What a person sees of the supports that were read: class, pixels and share of the photo; real files, all kinds."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fss_models.errors import FssError
from fss_models.marks import mask_from_picture, rle_json
from pipelines.inference.label_sets import read_label_set
from pipelines.inference.support_files import read_support_file
from pipelines.inference.supports import support_lines

HEIGHT, WIDTH = 60, 80
MASK = np.zeros((HEIGHT, WIDTH), dtype=bool)
MASK[10:30, 20:50] = True


def write(path: Path, pixels: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def photo(path: Path) -> Path:
    return write(path, np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))


def supports(folder: Path, *rows: dict[str, object], start: bytes = b"") -> Path:
    photo(folder / "a.jpg")
    file = folder / "supports.json"
    file.write_bytes(start + json.dumps({"class_name": "cup", "supports": rows}).encode().replace(b", ", b",\r\n"))
    return file


def test_a_line_a_support(tmp_path: Path) -> None:
    write(tmp_path / "m.png", MASK.astype(np.uint8) * 255)
    write(tmp_path / "not.png", (~(MASK & (np.indices(MASK.shape)[0] < 12))).astype(np.uint8) * 255)
    file = supports(tmp_path, {"image": "a.jpg", "mask": "m.png"}, {"image": "a.jpg", "box": [0, 0, 8, 6]},
                    {"image": "a.jpg", "points": [[3, 4], [5, 6]]}, {"image": "a.jpg", "mask": "not.png"})
    assert support_lines(read_label_set(str(file))) == [
        "cup: support 1: mask of 600 pixels, 12.5 % of the photo",
        "cup: support 2: box of 48 pixels, 1.0 % of the photo",
        "cup: support 3: points, 2 places",
        "cup: support 4: mask of 4,740 pixels, 98.8 % of the photo; is the mask inverted?",
    ]


def test_many_supports_are_a_line_a_class(tmp_path: Path) -> None:
    for number in range(12):
        for place in range(3):
            photo(tmp_path / f"class{number:02d}" / f"{place}.jpg")
            write(tmp_path / f"class{number:02d}" / f"{place}.png", np.roll(MASK, number, axis=1).astype(np.uint8))
    lines = support_lines(read_label_set(str(tmp_path)))
    assert lines[0] == "class00: 3 supports, marks of 12.5 % to 12.5 % of the photo"
    assert lines[8:] == ["... and 4 more classes"]


def test_a_file_of_windows_is_read(tmp_path: Path) -> None:
    plain = read_support_file(str(supports(tmp_path, {"image": "a.jpg", "mask": rle_json(MASK)})))
    row = {"image": "a.jpg", "mask": rle_json(MASK)}
    marked = read_support_file(str(supports(tmp_path, row, start=b"\xef\xbb\xbf")))
    assert marked == plain
    content = (tmp_path / "supports.json").read_bytes().removeprefix(b"\xef\xbb\xbf").decode()
    (tmp_path / "supports.json").write_text(content, encoding="utf-16")
    assert read_support_file(str(tmp_path / "supports.json")) == plain


def test_junk_beside_supports_is_no_support(tmp_path: Path) -> None:
    for folder in ("cup", "__MACOSX/cup", ".ipynb_checkpoints", "@eaDir/cup"):
        photo(tmp_path / folder / "a.jpg")
        write(tmp_path / folder / "a.png", MASK.astype(np.uint8))
    photo(tmp_path / "cup" / "._a.jpg")
    (tmp_path / "cup" / "Thumbs.db").write_bytes(b"1")
    (found,) = read_label_set(str(tmp_path))
    assert (found.class_name, len(found.supports)) == ("cup", 1)
    assert [len(one.supports) for one in read_label_set(str(tmp_path / "cup"))] == [1]


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "gif", "webp"])
def test_masks_of_every_lossless_format_beside_their_photo(tmp_path: Path, suffix: str) -> None:
    photo(tmp_path / "a.jpg")
    options = {"lossless": True} if suffix == "webp" else {}
    write(tmp_path / f"a_mask.{suffix}", MASK.astype(np.uint8) * 255, **options)
    (found,) = read_label_set(str(tmp_path))
    assert found.supports[0].mark["mask"] == rle_json(MASK)


def test_the_reason_of_a_refused_mask_names_the_support(tmp_path: Path) -> None:
    write(tmp_path / "m.jpg", MASK.astype(np.uint8) * 255)
    with pytest.raises(FssError, match=r"supports\[0\]\.mask: JPEG is lossy.*PNG"):
        read_support_file(str(supports(tmp_path, {"image": "a.jpg", "mask": "m.jpg"})))
    write(tmp_path / "a_mask.jpg", MASK.astype(np.uint8) * 255)
    (tmp_path / "supports.json").unlink()
    (tmp_path / "m.jpg").unlink()
    with pytest.raises(FssError, match=r"a_mask.jpg is a mask in a lossy format \(save it as a_mask.png\)"):
        read_label_set(str(tmp_path))


def test_a_rim_of_void_and_edges_are_no_object() -> None:
    rim = np.zeros_like(MASK)
    rim[8:32, 18:52] = True
    index = Image.fromarray(np.where(MASK, 1, np.where(rim, 255, 0)).astype(np.uint8))
    index.putpalette([0, 0, 0, 128, 0, 0, *([60] * 253 * 3), 224, 224, 192])
    file = io.BytesIO()
    index.save(file, "PNG")
    assert mask_from_picture(file.getvalue(), "") == rle_json(MASK)
