"""Records, identities and folders, in this process: what is written is what is read, and errors name the damage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fss_models import registry
from fss_models.clip import Features
from fss_models.errors import FssError
from infra.local.s3 import S3Server
from pipelines.base.storage import join
from pipelines.data.schema import PhotoKey
from pipelines.features.about import FeatureFolderInfo, check_probe, describe_frozen_part
from pipelines.features.folder import FeatureFolder, part_name
from pipelines.features.info import describe_features
from pipelines.features.reader import FeatureReader
from pipelines.features.records import Layout

PHOTOS = [PhotoKey(f"{i:064x}", 20 + i, 30, bool(i % 2)) for i in range(5)]


def drawn(count: int = 5) -> Features:
    draw = torch.Generator().manual_seed(0)
    maps = {"top": torch.randn(count, 3, 2, 2, generator=draw), "fine": torch.randn(count, 2, 4, 4, generator=draw)}
    return Features(maps=maps, sizes=torch.tensor([[p.height, p.width] for p in PHOTOS[:count]]))


def about_of(layout: Layout) -> FeatureFolderInfo:
    return FeatureFolderInfo(id="0123456789abcdef", precision=layout.precision, encoder="test", preprocessor={},
                             maps=layout.maps, probe={})


def written(base: str) -> FeatureFolder:
    """Two parts: photos 0 to 2, and 3 and 4."""
    layout = Layout.of(drawn(), "float32")
    folder, records = FeatureFolder(base, about_of(layout)), layout.pack(drawn())
    folder.write(PHOTOS[:3], records[:3])
    folder.write(PHOTOS[3:], records[3:])
    folder.finish()
    return FeatureFolder.open(base, folder.about.name)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_record_holds_every_map(precision: str) -> None:
    given = drawn()
    layout = Layout.of(given, precision)  # type: ignore[arg-type]
    records = layout.pack(given)
    assert {len(r) for r in records} == {layout.record_bytes} == {44 * (4 if precision == "float32" else 2)}
    back = layout.unpack([records[4], records[0], records[4]])
    assert back.keys() == given.maps.keys()
    for name, values in back.items():
        wanted = given.maps[name][[4, 0, 4]]
        assert values.dtype == torch.float32
        assert torch.equal(values, wanted if precision == "float32" else wanted.bfloat16().float())


def test_the_reader_gives_photos_in_the_order_asked(tmp_path: Path) -> None:
    """With a pool of two records: fails if one photo is given for another when the pool is full."""
    folder = written(str(tmp_path))
    reader = FeatureReader(folder, pool_bytes=2 * folder.layout.record_bytes)
    for order in ([4, 0, 4, 2], [1], [0, 1, 2, 3, 4], [3, 3]):
        found = reader([PHOTOS[i] for i in order])
        assert found.sizes.tolist() == [[20 + i, 30] for i in order]
        assert all(torch.equal(found.maps[k], v[order]) for k, v in drawn().maps.items())
    with pytest.raises(FssError, match=r"no features of photo 0000.*fss features build"):
        reader([PHOTOS[1]._replace(mirrored=False)])


def test_damage_is_told_by_the_part_s_hash(tmp_path: Path) -> None:
    """A flipped byte and a cut part; the others can still be read."""
    folder = written(str(tmp_path))
    spot = folder.locations[PHOTOS[4]]
    file = Path(folder.store.path(part_name(spot.part)))
    good = file.read_bytes()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    reader = FeatureReader(folder, pool_bytes=0)
    with pytest.raises(FssError, match=f"features part {spot.part} is damaged"):
        reader([PHOTOS[4]])
    with pytest.raises(FssError, match=f"features part {spot.part} is damaged"):
        describe_features(str(tmp_path), verify=True)
    reader(PHOTOS[:4])
    file.write_bytes(good[:-1])
    assert FeatureFolder.open(str(tmp_path), folder.about.name).locations.keys() == set(PHOTOS[:3])


def test_an_unfinished_folder_is_told(tmp_path: Path) -> None:
    folder = written(str(tmp_path))
    folder.store.delete("about.json")
    assert [f["finished"] for f in describe_features(str(tmp_path))] == [False]
    with pytest.raises(FssError, match="begun here but not finished"):
        FeatureFolder.open(str(tmp_path), folder.about.name)
    with pytest.raises(FssError, match="no features of this frozen part"):
        FeatureFolder.open(str(tmp_path), "f" * 16 + "-float32")


def test_ranges_in_object_storage(s3_server: S3Server) -> None:
    base = join(s3_server.url, "kept")
    folder = written(base)
    found = FeatureReader(folder, pool_bytes=0)(PHOTOS[::-1])
    assert all(torch.equal(found.maps[k], v.flip(0)) for k, v in drawn().maps.items())
    (facts,) = describe_features(base, verify=True)
    assert (facts["records"], facts["verified_parts"], facts["bytes"]) == (5, 2, 5 * 176)


# ---- identity -----------------------------------------------------------------------------------------------------

def test_methods_with_one_frozen_part_share_a_folder() -> None:
    """FCP and VRP-SAM do; another seed's random trunk, another side and another precision do not."""
    names = {
        "fcp": describe_frozen_part(registry.build("fcp", "debug"), "float32").name,
        "vrp_sam": describe_frozen_part(registry.build("vrp_sam", "debug"), "float32").name,
        "seed": describe_frozen_part(registry.build("fcp", "debug", seed=1), "float32").name,
        "fssam": describe_frozen_part(registry.build("fssam", "debug"), "float32").name,
        "bfloat16": describe_frozen_part(registry.build("fcp", "debug"), "bfloat16").name,
        "prior": describe_frozen_part(registry.build("fssam", "debug", {"side": 96}), "float32").name,
    }
    assert names["fcp"] == names["vrp_sam"]
    assert len(set(names.values())) == 5
    assert names["bfloat16"].split("-")[0] == names["fcp"].split("-")[0]


def test_training_leaves_the_identity_alone() -> None:
    """What is trained is no part of it, nor is the mode that the model is in."""
    model = registry.build("fcp", "debug").train()
    before = describe_frozen_part(model, "float32")
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(1.0)
    assert model.training
    assert describe_frozen_part(model, "float32") == before
    assert describe_frozen_part(model.eval(), "float32") == before
    check_probe(model, before, where="here")


def test_features_of_other_code_are_refused() -> None:
    about = describe_frozen_part(registry.build("fcp", "debug"), "float32")
    name = next(iter(about.probe))
    changed = about.model_copy(update={"probe": about.probe | {name: [v + 1 for v in about.probe[name]]}})
    with pytest.raises(FssError, match=f"map {name!r} is not what this program computes"):
        check_probe(registry.build("fcp", "debug"), changed, where="here")


@pytest.mark.parametrize("method", ["sansa", "prior"])
def test_a_method_without_a_frozen_part_is_refused(method: str) -> None:
    with pytest.raises(FssError, match=f"{method}.*no frozen features to keep.*train.features=off"):
        describe_frozen_part(registry.build(method, "debug"), "float32")
