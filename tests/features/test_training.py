"""Training from kept features is training from photos."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipelines.config import Recipe
from pipelines.features.build import ensure_features, features_url
from pipelines.training.run import RunSpec
from tests.features.conftest import losses_of, specs_of


def without(spec: RunSpec) -> RunSpec:
    return spec.model_copy(update={"train": spec.train.model_copy(update={"features": "off"})})


def difference(spec: RunSpec, base: str) -> float:
    """The largest relative difference of a loss over all steps."""
    kept, plain = losses_of(spec, base), losses_of(without(spec))
    assert len(kept) == len(plain) == spec.train.steps
    names = [k for k in plain[0] if k.startswith("loss")]
    assert len(names) > 1
    return max(abs(a[k] - b[k]) / abs(b[k]) for a, b in zip(kept, plain, strict=True) for k in names)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_losses_are_those_without_the_features(
    precision: str, ray_cluster: object, shapes_shards: str, kept_recipe: Callable[..., Recipe]
) -> None:
    """Six steps with flips and a varying number of shots: fails if a mirrored photo, an order or a size is mixed up."""
    recipe = kept_recipe("fcp", "vrp_sam", "fssam", features=precision, shots=2, vary_shots=True)
    specs = specs_of(recipe, shapes_shards)
    ensure_features(recipe, specs, ray_cluster)
    found = {s.method.name: difference(s, features_url(recipe)) for s in specs}
    print(precision, found)
    assert max(found.values()) < {"float32": 1e-5, "bfloat16": 0.02}[precision]
