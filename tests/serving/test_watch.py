"""A replica's model takes a new champion: memories are computed again, and a job ends with the bundle it began with."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from fss_models import registry
from fss_models.bundle import BundleInfo
from fss_models.errors import FssError
from pipelines.base.storage import Store
from pipelines.bundles.bundle import replace_bundle, save_bundle
from pipelines.config.label import ServiceSettings
from pipelines.config.mask_request import MaskRequest
from pipelines.inference.support_files import read_support_file
from pipelines.serving.spec import ModelSpec
from pipelines.serving.watch import BundleWatch
from tests.serving.helpers import ball, encoded, supports_file, wait_for

PHOTO = encoded(ball(7)[0])
NEVER_S = 3600.0


@pytest.fixture
def bundles(tmp_path: Path) -> dict[str, BundleInfo]:
    """Two bundles of different methods, by their URLs."""
    return {str(tmp_path / name): save_bundle(str(tmp_path / name), registry.build(name, "nano"))
            for name in ("prior", "sam2_frozen")}


@pytest.fixture
def model(ray_cluster: object, bundles: dict[str, BundleInfo], tmp_path: Path) -> Any:
    """A model that follows a champion, with one support set; it looks when a test tells it to."""
    from pipelines.serving.model import Model

    champion, supports = str(tmp_path / "champion"), read_support_file(str(supports_file(tmp_path)))
    replace_bundle(*next((url, champion, info) for url, info in bundles.items()))
    supports.save(str(tmp_path / "supports"))
    made = Model(ModelSpec(bundle_url=champion, supports_url=str(tmp_path / "supports"), follow=champion,
                           follow_s=NEVER_S, serve=ServiceSettings(threads=1)))
    asyncio.run(made.add_support(supports))
    return made


def promoted(model: Any, bundles: dict[str, BundleInfo]) -> tuple[BundleInfo, BundleInfo]:
    """Promote the second bundle: the old and the new one."""
    (_, old), (url, new) = bundles.items()
    replace_bundle(url, model.spec.follow, new)
    return old, new


def ask(model: Any, bundle_id: str = "", **options: bool) -> tuple[str, list[Any]]:
    request = MaskRequest(support_ids=tuple(model.labeler.support_ids))
    found: tuple[str, list[Any]] = asyncio.run(model.chunk([PHOTO], request, bundle_id, **options))
    return found


def test_the_memories_in_use_are_computed_before_the_new_model_answers(model: Any, bundles: Any) -> None:
    before, ids = model.labeler, model.labeler.support_ids
    old, new = promoted(model, bundles)
    assert model.labeler.info == old
    model._watch.look()
    assert (model.labeler.info, model.labeler.support_ids) == (new, ids)
    assert type(model.labeler.memory(ids[0])) is type(before.memory(ids[0]))
    assert model._former is None, "no job uses the old one"
    asyncio.run(model.add_support(read_support_file(str(Path(model.spec.follow).parent / "supports.json"))))


def test_a_job_ends_with_the_bundle_it_began_with(model: Any, bundles: Any) -> None:
    """Would catch a job whose parts are of two bundles, and one that fails because a champion was promoted."""
    first = ask(model)
    old, new = promoted(model, bundles)
    model._watch.look()
    assert ask(model, old.bundle_id) == first
    assert ask(model)[0] == ask(model, new.bundle_id)[0] == new.bundle_id
    with pytest.raises(FssError, match=f"the bundle is {new.bundle_id} now, no longer {'f' * 16}"):
        ask(model, "f" * 16)
    assert ask(model, "f" * 16, strict=False)[0] == new.bundle_id


def test_a_job_with_a_champion_that_the_replica_has_not_seen(model: Any, bundles: Any) -> None:
    _, new = promoted(model, bundles)
    assert ask(model, new.bundle_id)[0] == new.bundle_id


def test_a_bundle_that_is_being_written_is_not_taken(bundles: dict[str, BundleInfo], tmp_path: Path) -> None:
    (first, old), (second, new) = bundles.items()
    place, taken = Store(str(tmp_path / "champion")), []
    replace_bundle(first, place.url, old)
    watch = BundleWatch(place.url, old, taken.append, 0.05)
    place.delete("bundle.json")
    watch.look()
    place.write_bytes("bundle.json", b"{")
    watch.look()
    assert taken == []
    replace_bundle(second, place.url, new)
    wait_for(lambda: taken == [new], 10)
    replace_bundle(second, place.url, changed := new.model_copy(update={"metrics": {"miou": 0.5}}))
    wait_for(lambda: taken == [new, changed], 10)


def test_a_bundle_that_cannot_be_loaded_is_tried_again(bundles: dict[str, BundleInfo], tmp_path: Path) -> None:
    """Would catch a thread that ends with the first error, and a half-loaded bundle that is never looked at again."""
    (first, old), (_, new) = bundles.items()
    place, calls = str(tmp_path / "champion"), []

    def take(info: BundleInfo) -> None:
        calls.append(info)
        if len(calls) < 3:
            raise RuntimeError("out of memory")

    replace_bundle(first, place, old)
    BundleWatch(place, new, take, 0.05)
    wait_for(lambda: len(calls) == 3, 10)


