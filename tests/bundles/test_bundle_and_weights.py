"""Bundles predict what was saved, refuse what does not fit; weight files come from paths, s3 and web servers."""

from __future__ import annotations

import hashlib
import http.server
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from fss_models import registry
from fss_models.errors import FssError
from fss_models.prompts import mask_prompt
from fss_models.sam2_core.build import build_sam2
from fss_models.segmenter import Segmenter
from pipelines.base.storage import Store
from pipelines.bundles.bundle import load_bundle, read_bundle_info, save_bundle
from pipelines.bundles.weights import fetch
from tests.fixtures.hub import LocalHub, Repository
from tests.fss_models.methods_here import methods
from tests.web import serving


@torch.no_grad()
def predict(model: Segmenter) -> torch.Tensor:
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    mask = np.zeros((40, 60), bool)
    mask[5:20, 10:40] = True
    features = model.eval().encode(model.prepare([image, image[::-1].copy()]))
    memory = model.memorise(features, model.collate([[mask_prompt(mask)]], features.sizes[:1]))
    return model.segment(memory, features, torch.tensor([[0, 1]])).logits


@pytest.mark.parametrize("name", methods())
def test_a_bundle_predicts_what_was_saved(name: str, tmp_path: Path) -> None:
    model = registry.build(name, "debug", seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    saved = save_bundle(str(tmp_path), model, dataset="shapes", classes=["star"])
    loaded, info = load_bundle(str(tmp_path))
    assert torch.equal(predict(model), predict(loaded))
    assert info == saved == read_bundle_info(str(tmp_path))
    assert info.bundle_id == saved.bundle_id


def test_a_bundle_with_a_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    """The tensors of one method under the json of another: named as such, nothing is predicted."""
    save_bundle(str(tmp_path / "a"), registry.build("sansa", "debug"))
    save_bundle(str(tmp_path / "b"), registry.build("sansa", "debug", {"factor": 0.8}))
    mixed = Store(str(tmp_path / "a")).read_json("bundle.json")
    other = Store(str(tmp_path / "b")).read_bytes("model.safetensors")
    store = Store(str(tmp_path / "mixed"))
    store.write_bytes("model.safetensors", other)
    store.write_json("bundle.json", mixed)
    with pytest.raises(FssError, match="does not match"):
        load_bundle(str(tmp_path / "mixed"))
    store.write_json("bundle.json", mixed | {"tensors_sha256": hashlib.sha256(other).hexdigest()})
    with pytest.raises(FssError, match="shape"):
        load_bundle(str(tmp_path / "mixed"))


def test_half_a_bundle_is_none(tmp_path: Path) -> None:
    Store(str(tmp_path)).write_bytes("model.safetensors", b"")
    with pytest.raises(FssError, match=r"bundle\.json is missing"):
        load_bundle(str(tmp_path))


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """A real HTTP server over the test's folder."""
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with serving(handler) as url:
        yield url


def test_a_checkpoint_is_fetched_once_and_checked(web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSS_CACHE", str(tmp_path / "cache"))
    state = build_sam2("debug", object_scores=True).state_dict()
    torch.save({"model": state}, tmp_path / "sam.pt")
    sha = hashlib.sha256((tmp_path / "sam.pt").read_bytes()).hexdigest()
    path = fetch(f"{web}/sam.pt", sha)
    (tmp_path / "sam.pt").unlink()
    assert fetch(f"{web}/sam.pt", sha) == path, "the second time it comes from the cache"
    model = registry.build("sam2_frozen", "debug", weights=path)
    assert not model.untrained
    with pytest.raises(FssError, match="sha256"):
        fetch(f"{web}/sam.pt", "0" * 64)


def test_a_checkpoint_comes_from_a_hub(hub: LocalHub, tmp_path: Path) -> None:
    content = b"weights of a model"
    hub.repositories["owner/repository"] = Repository()
    hub.repositories["owner/repository"].commit({"sam.pt": content})
    path = Path(fetch("hf://owner/repository/sam.pt", hashlib.sha256(content).hexdigest()))
    with pytest.raises(FssError, match=r"^hf://owner/repository/other\.pt: there is no such file in this repository"):
        fetch("hf://owner/repository/other.pt")
    assert path.read_bytes() == content
    assert path.is_relative_to(os.environ["FSS_CACHE"]), "nothing is written outside our own cache"


def test_missing_weights_are_one_clear_line(web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSS_CACHE", str(tmp_path / "cache"))
    for place in (str(tmp_path / "none.pt"), f"{web}/none.pt", "http://127.0.0.1:9/none.pt"):
        with pytest.raises(FssError) as caught:
            fetch(place)
        assert place in str(caught.value)
        assert "\n" not in str(caught.value)
    assert list(tmp_path.rglob("*none.pt*")) == [], "nothing half-written stays behind"
