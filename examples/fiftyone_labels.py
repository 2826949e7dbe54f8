"""From one marked photo to labels in FiftyOne: `python examples/fiftyone_labels.py FOLDER` (extra `fiftyone`).

It draws photos of red discs into the folder, labels them with the bundle that ships, prints the most doubtful ones
first, and with `--app` opens FiftyOne's App on them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import fiftyone as fo
import numpy as np
from PIL import Image

from pipelines.integrations.fiftyone import create_model


def draw(seed: int, discs: int) -> tuple[np.ndarray, np.ndarray]:
    """A photo [240, 320, 3] uint8 of grey noise with red discs, and the pixels of the last one [240, 320] bool."""
    rng = np.random.default_rng(seed)
    photo, mask = rng.integers(60, 120, (240, 320, 3), dtype=np.uint8), np.zeros((240, 320), dtype=bool)
    rows, columns = np.mgrid[:240, :320]
    for number in range(discs):
        middle = 60 + 100 * number, int(rng.integers(60, 180))
        mask = (columns - middle[0]) ** 2 + (rows - middle[1]) ** 2 < int(rng.integers(25, 40)) ** 2
        photo[mask] = 200, 40, 40
    return photo, mask


def write_photos(folder: Path) -> Path:
    """Six photos below `folder`/photos, two of them without a disc, and one marked photo. Returns the supports file."""
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    for number, discs in enumerate((1, 2, 3, 0, 2, 0)):
        Image.fromarray(draw(number, discs)[0]).save(folder / "photos" / f"{number}.jpg")
    photo, mask = draw(100, 1)
    Image.fromarray(photo).save(folder / "marked.jpg")
    Image.fromarray(mask).save(folder / "mask.png")
    supports = folder / "supports.json"
    supports.write_text(json.dumps({"class_name": "disc", "supports": [{"image": "marked.jpg", "mask": "mask.png"}]}))
    return supports


def main() -> None:
    """Label the photos and look at them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--app", action="store_true")
    given = parser.parse_args()
    model = create_model(str(write_photos(given.folder)), instances="pieces")
    dataset = fo.Dataset.from_images_dir(str(given.folder / "photos"), name="discs", overwrite=True)
    dataset.apply_model(model, label_field="fss", batch_size=4, num_workers=1)
    dataset.add_dynamic_sample_fields()  # so that the App's sidebar has presence, quality and status
    for sample in dataset.sort_by("fss.uncertainty", reverse=True):
        fss = sample.fss
        print(f"{sample.filename}  uncertainty {fss.uncertainty:.3f}  presence {fss.presence['disc']:.3f}  "
              f"discs: {', '.join(f'{one.confidence:.2f} {one.status}' for one in fss.detections) or 'none'}")
    print("accepted:", dataset.filter_labels("fss", fo.ViewField("status") == "accepted").count("fss.detections"))
    if given.app:
        fo.launch_app(dataset).wait()


if __name__ == "__main__":
    main()
