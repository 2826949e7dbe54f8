"""SAM 3 in the labeler: masks do not depend on the batch, names and phrases reach the prompt, photos may be bad."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fss_models import registry
from fss_models.errors import FssError
from fss_models.marks import rle_json
from fss_models.methods.sam3.config import Sam3Config
from pipelines.bundles.bundle import read_bundle_info, save_bundle
from pipelines.inference.labeler import Labeler
from pipelines.inference.masks import Label, PhotoFailure
from pipelines.inference.support_files import SupportRequest, support_request, support_set_from_request
from pipelines.inference.supports import Support, SupportSet, check_reads, load_support_set
from pipelines.labelling.run import encodings_line
from tests.fss_models.methods_here import needs_transformers
from tests.fss_models.sam3_case import mask, photo, tokenizer_file
from tests.serving.helpers import encoded


def supports(name: str = "box", prompt: str = "", shots: int = 1) -> SupportSet:
    marked = tuple(Support(encoded(photo(k), "PNG"), {"mask": rle_json(mask(k))}) for k in range(shots))
    return SupportSet(name, marked, prompt)


def bundle(folder: Path, **config: object) -> str:
    save_bundle(str(folder), registry.build("sam3", "debug", config), recipe_config=config)
    return str(folder)


@needs_transformers
@pytest.mark.parametrize("mode", ["canvas", "token"])
def test_masks_do_not_depend_on_the_batch_and_a_bad_photo_is_a_failure(mode: str, tmp_path: Path) -> None:
    shapes = [(50, 70), (90, 40), (33, 200), (64, 64), (120, 90)]
    photos = [encoded(photo(i, *s)) for i, s in enumerate(shapes)]
    photos.insert(2, b"no photo")
    labeler = Labeler(bundle(tmp_path, mode=mode))
    support = labeler.add_support(supports())
    one, eight = (labeler.label(photos, support, batch=batch) for batch in (1, 8))
    assert [type(label) for label in one] == [Label, Label, PhotoFailure, Label, Label, Label]
    assert one == eight or all(_same(a, b) for a, b in zip(one, eight, strict=True))
    sizes = [(x.height, x.width) for x in one if isinstance(x, Label)]
    assert sizes == shapes


def _same(one: Label | PhotoFailure, other: Label | PhotoFailure) -> bool:
    if isinstance(one, PhotoFailure) or isinstance(other, PhotoFailure):
        return one == other
    return one.counts == other.counts and abs(one.score - other.score) < 1e-5


@needs_transformers
def test_a_photo_without_the_class_has_area_and_score_0(tmp_path: Path) -> None:
    labeler = Labeler(bundle(tmp_path, threshold=1.0))
    (found,) = labeler.label([encoded(photo(3))], labeler.add_support(supports()))
    assert isinstance(found, Label)
    assert (found.area, found.score) == (0, 0.0)


@needs_transformers
def test_the_name_and_the_phrase_change_the_masks(tmp_path: Path) -> None:
    """The same photos under another name are another prompt, though their id is the same."""
    file = tokenizer_file(tmp_path / "tokenizer.json")
    labeler = Labeler(bundle(tmp_path / "b", class_names=True, tokenizer_weights=file))
    cat, dog, said = supports("cat"), supports("dog"), supports("part 7", "dog")
    assert cat.support_id == dog.support_id != said.support_id
    found = []
    for one in (cat, dog, said):
        memory = labeler.memory(labeler.add_support(one))
        found.append(memory.tensors["text"])
    assert not np.allclose(found[0], found[1])
    assert np.allclose(found[1], found[2])


@needs_transformers
def test_a_phrase_that_nothing_reads_is_refused(tmp_path: Path) -> None:
    url = bundle(tmp_path)
    said = supports(prompt="a red box")
    line = r"class 'box': method 'sam3' reads no `prompt`"
    with pytest.raises(FssError, match=line):
        Labeler(url).add_support(said)
    with pytest.raises(FssError, match=line):
        check_reads(registry.method_class("sam3"), Sam3Config(), said)
    check_reads(registry.method_class("sam3"), Sam3Config(), supports())


def test_points_are_refused_before_any_photo_is_read() -> None:
    """The photo is none: whoever opened it would fail otherwise."""
    bad = SupportSet("box", (Support(b"no photo", {"points": [[1, 2]], "labels": [1]}),))
    with pytest.raises(FssError, match=r"supports\[0\].*'sam3' reads no points marks.*box, mask"):
        check_reads(registry.method_class("sam3"), Sam3Config(), bad)


def test_a_prompt_travels_with_its_set(tmp_path: Path) -> None:
    said = supports(prompt="a red box")
    assert "prompt" not in support_request(supports())
    sent = support_set_from_request(SupportRequest.model_validate(support_request(said)))
    assert sent == said
    assert load_support_set(str(tmp_path), said.save(str(tmp_path))) == said
    body = support_request(said) | {"prompt": "bad\x00"}
    with pytest.raises(FssError, match="prompt has characters"):
        support_set_from_request(SupportRequest.model_validate(body))


@needs_transformers
def test_a_job_says_how_often_it_encodes(tmp_path: Path) -> None:
    classes = [supports("a", shots=2), supports("b", shots=3), supports("c")]
    for mode, count in (("canvas", "300 image"), ("token", "106 image")):
        info = read_bundle_info(bundle(tmp_path / mode, mode=mode))
        assert count in encodings_line(info, 100, classes)
