"""Training from kept features is training from photos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fss_models.errors import FssError
from pipelines.config.run import RunSpec
from pipelines.config.train import TrainConfig
from pipelines.features.build import ensure_features, features_url
from tests.features.conftest import METHODS, MakeRecipe, losses_of, specs_of


def without(spec: RunSpec) -> RunSpec:
    return spec.model_copy(update={"train": spec.train.model_copy(update={"features": "off"})})


def difference(spec: RunSpec, base: str) -> float:
    """The largest relative difference of a loss over all steps."""
    kept, plain = losses_of(spec, base), losses_of(without(spec))
    assert len(kept) == len(plain) == spec.train.steps
    names = [k for k in plain[0] if k.startswith("loss")]
    assert len(names) > 1
    return max(abs(a[k] - b[k]) / abs(b[k]) for a, b in zip(kept, plain, strict=True) for k in names)


def test_losses_are_those_without_the_features(
    kept: dict[str, Any], shapes_shards: str, make_recipe: MakeRecipe
) -> None:
    """Six steps with flips and a varying number of shots: fails if a mirrored photo, an order or a size is mixed up.

    Seen: 2.7e-7 (FCP), 1.8e-7 (VRP-SAM).
    """
    specs = specs_of(make_recipe(*METHODS, shots=2, vary_shots=True), shapes_shards)
    found = {s.method.name: difference(s, str(Path(kept["features"]).parent)) for s in specs}
    assert max(found.values()) < 1e-5, found


def test_bfloat16_halves_the_bytes_and_stays_close(
    ray_cluster: object, kept: dict[str, Any], shapes_shards: str, make_recipe: MakeRecipe
) -> None:
    """Seen: 6e-4 (FCP), 5e-3 (VRP-SAM). Fails if maps are read in another order or as another type."""
    recipe = make_recipe(*METHODS, features="bfloat16", shots=2, vary_shots=True)
    specs = specs_of(recipe, shapes_shards)
    (facts,) = ensure_features(recipe, specs, ray_cluster)
    assert facts["bytes"] == kept["bytes"] / 2
    found = {s.method.name: difference(s, features_url(recipe)) for s in specs}
    assert 1e-7 < max(found.values()) < 0.02, found


def test_a_photo_that_is_not_there_stops_training(
    kept: dict[str, Any], shapes_shards: str, make_recipe: MakeRecipe
) -> None:
    """Another fold's photos: never another photo's features, nor zeros."""
    (spec,) = specs_of(make_recipe("fcp", steps=40), shapes_shards, fold=1)
    with pytest.raises(FssError, match=r"no features of .*photo .*fss features build"):
        losses_of(spec, str(Path(kept["features"]).parent))


def test_settings() -> None:
    """A bare `off` in YAML is false; augmented photos cannot have kept features."""
    assert TrainConfig.model_validate({"features": False}).features == "off"
    with pytest.raises(ValueError, match="augment=fssam changes every photo"):
        TrainConfig(features="float32", augment="fssam")
