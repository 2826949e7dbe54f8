"""The settings of masks: a recipe, a job's manifest and a request have the same limits and defaults."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from pipelines.config.label import LabelConfig
from pipelines.config.mask_request import MaskRequest
from pipelines.config.wanted import Wanted
from pipelines.labelling.manifest import JobManifest

JOB = {"images_url": "u", "images_count": 3, "images_hash": "h", "class_name": "cup", "support_id": "s",
       "bundle_id": "b", "method": "prior", "preset": "nano", "chunk": 2, "batch": 2, "limit": 0, "code_version": "0"}


@pytest.mark.parametrize("change", [{"threshold": 0.0}, {"threshold": 1.0}, {"overlaps": "merge"}, {"pairs": 4097},
                                    {"prevalence": 1.0}, {"empty_below": 1.1}, {"review_below": -0.1}, {"pair": 1}])
def test_wrong_settings_are_refused_everywhere(change: dict[str, Any]) -> None:
    for kind, needed in ((LabelConfig, {}), (MaskRequest, {"support_ids": ("s",)}), (JobManifest, JOB)):
        kind.model_validate(needed)
        with pytest.raises(ValidationError):
            kind.model_validate({**needed, **change})


def test_settings_reach_the_labeler_as_the_recipe_states_them() -> None:
    given = {"threshold": 0.4, "overlaps": "resolve", "pairs": 8, "prevalence": 0.2, "empty_below": 0.3,
             "review_below": 0.9}
    recipe = LabelConfig(**given)
    manifest = JobManifest(**JOB, **recipe.wanted())
    assert manifest.mask_request == MaskRequest(support_ids=("s",), **given)
    assert manifest.mask_request.body() == {"support_id": "s", **given}
    assert {k: manifest.content()[k] for k in given} == given


def test_defaults_are_left_out_of_manifests_and_requests() -> None:
    manifest = JobManifest(**JOB)
    assert not Wanted.model_fields.keys() - {"threshold"} & manifest.content().keys()
    assert manifest.content()["threshold"] == 0.5
    assert manifest.mask_request.body() == {"support_id": "s", "threshold": 0.5}
