"""What the test of FiftyOne runs in FiftyOne's environment, with its own MongoDB: a dataset, two models, an import.

Arguments: folder of photos, supports, bundle, finished job without instances, finished job with instances. Prints JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import fiftyone as fo
import numpy as np

from fss_models.errors import FssError
from pipelines.integrations.fiftyone import create_model, import_job


def masks_of(sample: Any, field: str) -> dict[str, Any]:
    """The detections of a sample: label -> list of [pixels in the mask, confidence, box in pixels]."""
    found: dict[str, Any] = {}
    for one in sample[field].detections:
        left, top, wide, high = one.bounding_box
        assert one.mask.shape == (round(high * sample.metadata.height), round(wide * sample.metadata.width))
        found.setdefault(one.label, []).append([
            int(one.mask.sum()), one.confidence, [left * sample.metadata.width, top * sample.metadata.height]])
    return found


def apply_models(photos: str, supports: str, bundle: str) -> dict[str, Any]:
    """Label a dataset with both kinds of labels, through FiftyOne's data loader and its workers."""
    dataset = fo.Dataset.from_images_dir(photos, name="applied")
    dataset.add_sample(fo.Sample(filepath=f"{photos}/missing.png"))
    dataset.compute_metadata(skip_failures=True)
    objects = create_model(supports, bundle=bundle, device="cpu", instances="pieces")
    dataset.apply_model(objects, label_field="objects", batch_size=2, num_workers=1)
    classes = create_model(supports, bundle=bundle, device="cpu")
    dataset.apply_model(classes, label_field="classes", batch_size=2, num_workers=1)
    dataset.mask_targets["classes"] = classes.mask_targets
    dataset.save()
    known = [s for s in dataset.sort_by("filepath") if s.objects is not None]
    array = objects.predict(np.zeros((40, 60, 3), np.uint8))
    order = dataset.exists("objects").sort_by("objects.uncertainty", reverse=True)
    return {"masks": [masks_of(s, "objects") for s in known],
            "maps": [np.unique(s.classes.mask, return_counts=True)[1].tolist() for s in known],
            "targets": dict(fo.load_dataset("applied").mask_targets["classes"]), "left": len(dataset) - len(known),
            "uncertainty": order.values("objects.uncertainty"), "of_array": type(array).__name__,
            "above": dataset.filter_labels("objects", fo.ViewField("confidence") > 2).count("objects.detections")}


def import_jobs(photos: str, plain: str, split: str) -> dict[str, Any]:
    """Import a finished job into an empty dataset, and one with instances into a dataset that has the photos.

    The second one is also imported as segmentations; the first one, whose classes overlap, cannot be.
    """
    empty, full = fo.Dataset("empty"), fo.Dataset.from_images_dir(photos, name="full", recursive=True)
    import_job(full, split, "map", labels="segmentation")
    try:
        import_job(empty, plain, "map", labels="segmentation")
        refused = ""
    except FssError as error:
        refused = str(error)
    before = len(full)
    counts = import_job(empty, plain, "found"), import_job(full, split, "found")
    empty.compute_metadata()
    full.compute_metadata(skip_failures=True)
    schema = full.get_field_schema(flat=True)
    return {"refused": refused, "targets": dict(full.mask_targets["map"]),
            "maps": {s.filename: int((s.map.mask == 1).sum()) for s in full.exists("map")},
            "counts": counts, "before": before, "after": len(full),
            "plain": {s.filename: masks_of(s, "found") for s in empty},
            "split": {s.filename: masks_of(s, "found") for s in full.exists("found")},
            "declared": sorted(n for n in schema if n.startswith("found.") and n.count(".") == 1)}


if __name__ == "__main__":
    photos_of_models, *given, first, second, photos_of_job = sys.argv[1:]
    print(json.dumps({"applied": apply_models(photos_of_models, *given),
                      "imported": import_jobs(photos_of_job, first, second)}))
