"""The photos and supports that `fss demo` writes for its labelling job."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from fss_models.photo_files import decode_image
from jobs.demo_inputs import write_photos, write_supports
from pipelines.inference.support_files import read_support_file
from tests.serving.helpers import ball, encoded

NAMES = {1: "cat/1.png", 2: "dog/1.png", 3: "1.png"}


class Three:
    """Stands for shards with three photos of one class; the photos have one file name, in three folders."""

    url = "three"

    def images(self, split: str) -> list[dict[str, Any]]:
        return [{"image_id": i, "file_name": n} for i, n in NAMES.items()]

    def photos_of(self, class_id: int, split: str) -> list[int]:
        return list(NAMES)

    def photo(self, image_id: int) -> dict[str, Any]:
        return {"image": encoded(ball(image_id)[0], "PNG"), "file_name": NAMES[image_id]}

    def sample(self, image_id: int, class_id: int) -> Any:
        return SimpleNamespace(image=decode_image(self.photo(image_id)["image"]), mask=ball(image_id)[1])


def test_photos_with_one_name_in_several_folders_stay_apart(tmp_path: Path) -> None:
    shards: Any = Three()
    for _ in range(2):  # the second call skips the photos that exist
        assert write_photos(shards, str(tmp_path / "photos")) == 3
    found = {p.read_bytes() for p in (tmp_path / "photos").rglob("*.png")}
    assert found == {shards.photo(i)["image"] for i in NAMES}
    chosen: Any = SimpleNamespace(class_id=1, name="ball")
    given = read_support_file(write_supports(shards, chosen, str(tmp_path / "supports")))
    images, prompts = given.decoded()
    for image, prompt in zip(images, prompts, strict=True):
        assert prompt.mask is not None
        assert np.array_equal(image[..., 0] == 220, prompt.mask.numpy())
