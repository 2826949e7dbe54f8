"""Tiles: their places, how what a model gives for them is joined, the photo's presence, and cuts around supports."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from torch import Tensor

from fss_models.clip import Prompt, PromptKind
from fss_models.errors import FssError
from fss_models.predictor import MaskSettings
from fss_models.presence import UNCALIBRATED, Presence
from fss_models.run_lengths import ColumnRuns
from fss_models.settings import tile_mistake
from fss_models.tile_owners import NO_CLAIM, RankedOwners
from fss_models.tile_supports import cut_supports, fitting_side, resolve_side
from fss_models.tiles import TiledMask, TileGrid, TileJoin, is_tiled, photo_presence

THERE = Presence(presence=0.9, quality=0.6, status="accepted")
ABSENT = Presence(presence=0.1, quality=0.0, status="empty")


def disc(height: int, width: int, y: float, x: float, radius: float = 40) -> Tensor:
    """Logits that fall with the distance from the disc's border."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (radius - ((rows - y) ** 2 + (columns - x) ** 2).sqrt()) / 10


def joined(maps: list[Tensor], grid: TileGrid, presences: list[Presence], *, resolve: bool = False,
           scores: tuple[float, ...] = (0.5, 0.5), offsets: Tensor | None = None) -> list[TiledMask]:
    """What the tiles of full-size logits give together; the tile `i` is off by `offsets[i]`."""
    join = TileJoin(grid, len(maps), 0.0, MaskSettings(), resolve=resolve)
    for number, window in enumerate(grid.windows):
        off = 0.0 if offsets is None else float(offsets[number])
        tiles = torch.stack([torch.from_numpy(window.cut(one.numpy()).copy()) + off for one in maps])
        join.add(tiles, scores[:len(maps)], [presences[number]] * len(maps))
    return join.masks()


def pixels(one: TiledMask) -> np.ndarray:
    mask: np.ndarray = coco.decode(one.rle).astype(bool)
    return mask


@pytest.mark.parametrize(("size", "side", "overlap"), [((300, 420), 160, 0.25), ((100, 500), 160, 0.0),
                                                       ((161, 160), 160, 0.5), ((4000, 6000), 256, 0.25)])
def test_tiles_cover_the_photo_and_share_the_overlap(size: tuple[int, int], side: int, overlap: float) -> None:
    grid = TileGrid.of(size, side, overlap)
    assert len(grid.windows) == len(grid)
    for starts, length, tile in ((grid.tops, size[0], grid.height), (grid.lefts, size[1], grid.width)):
        assert starts[0] == 0
        assert starts[-1] + tile == length
        assert tile == min(side, length)
        assert all(a + tile - b >= round(side * overlap) - 1 for a, b in pairwise(starts))
    for shares in grid.shares:
        assert torch.allclose(shares.sum(dim=0), torch.ones(shares.shape[1]))
    assert is_tiled(size, side)
    assert not is_tiled((side, side), side)
    assert not is_tiled(size, 0)


def test_an_object_over_four_tiles_has_no_seam() -> None:
    """Would catch a tile at a wrong place, and a step between tiles that disagree."""
    size = (300, 420)
    grid, truth = TileGrid.of(size, 240), disc(*size, 150, 210)
    assert len(grid) == 4
    assert (pixels(joined([truth], grid, [UNCALIBRATED] * 4)[0]) == (truth > 0).numpy()).all()
    off = torch.tensor([-1.5, -1.2, 1.3, 1.6])  # a constant in each tile: weights turn the steps into slopes
    found = pixels(joined([truth], grid, [UNCALIBRATED] * 4, offsets=off)[0])
    steps = np.abs(np.diff(found.sum(axis=0).astype(int)))[175:245]  # the disc's height where the columns of tiles meet
    assert steps.max() <= 20  # the round border itself makes up to 16; without weights that fall it is 55


def test_two_classes_share_no_pixel_when_they_are_resolved() -> None:
    size = (300, 420)
    grid, maps = TileGrid.of(size, 160), [disc(*size, 150, 190), disc(*size, 150, 230)]
    presences = [THERE] * len(grid)
    kept = [pixels(one) for one in joined(maps, grid, presences)]
    assert (kept[0] & kept[1]).any()
    first, second = (pixels(one) for one in joined(maps, grid, presences, resolve=True))
    assert not (first & second).any()
    assert ((first | second) == (kept[0] | kept[1])).all()
    assert first[150, 200]
    assert second[150, 220]


def resolved(grid: TileGrid, classes: list[tuple[Tensor, list[Presence]]]) -> list[TiledMask]:
    """The masks of classes, each with full-size logits and the estimates of its tiles."""
    join = TileJoin(grid, len(classes), 0.0, MaskSettings(), resolve=True)
    for number, window in enumerate(grid.windows):
        tiles = torch.stack([torch.from_numpy(window.cut(one.numpy()).copy()) for one, _ in classes])
        join.add(tiles, [0.5] * len(classes), [presences[number] for _, presences in classes])
    return join.masks()


def test_a_class_that_the_photo_lacks_takes_no_pixel() -> None:
    """One tile of many shows it, which is too little for the photo, or only in pieces that are dropped."""
    size = (160, 160 * 20)
    grid, tall = TileGrid.of(size, 160, 0.0), disc(*size, 80, 880, 70)
    weak, sure = (Presence(presence=p, quality=0.58, status="accepted") for p in (0.6, 0.999999))
    shown = [Presence(presence=0.95, quality=0.55, status="accepted")] * 20
    rare = [ABSENT] * 5 + [weak] + [ABSENT] * 14
    elsewhere = [sure] + [ABSENT] * 4 + [weak] + [ABSENT] * 14  # surely in the first tile, where it has no pixel
    others = [(tall, shown), (disc(*size, 80, 930, 70), shown)]
    wanted = [pixels(one) for one in resolved(grid, others)]
    assert wanted[0].any()
    assert wanted[1].any()
    for presences, status in ((rare, "empty"), (elsewhere, "accepted")):
        absent, *found = resolved(grid, [(tall + 1, presences), *others])
        assert absent.presence.status == status
        for one, mask in zip(found, wanted, strict=True):
            assert (pixels(one) == mask).all()
        assert not pixels(absent).any()


def test_owners_of_any_choice_of_classes_are_those_without_the_others() -> None:
    """Would catch a wrong order behind the first claim: weights are few, so that many are equal."""
    weights = torch.from_numpy(np.random.default_rng(0).integers(-1, 4, (4, 30, 50))).float()
    claims = torch.where(weights < 0, NO_CLAIM, weights)
    ranked, first = RankedOwners(30, 50, 4), RankedOwners(30, 50, 4)
    for columns in (slice(0, 20), slice(20, 50)):
        ranked.add(claims[..., columns], first_only=False)
        first.add(claims[..., columns], first_only=True)
    for there in ([0, 1, 2, 3], [1, 2, 3], [0, 3], [2], []):
        best = torch.full((30, 50), -1.0)
        owner = torch.full((30, 50), -1)
        for number in there:
            wins = weights[number] > best
            best, owner = torch.where(wins, weights[number], best), torch.where(wins, number, owner)
        found = [coco.decode(one) for one in ranked.masks(there)]
        assert all((mask == (owner == number).numpy()).all() for number, mask in enumerate(found))
    assert first.masks([0, 1, 2, 3]) == ranked.masks([0, 1, 2, 3])


def test_pieces_that_only_tiles_without_the_class_show_are_dropped() -> None:
    size = (160, 640)
    grid = TileGrid.of(size, 160, 0.0)
    maps = torch.maximum(disc(*size, 80, 160), disc(*size, 80, 560))  # one across two tiles, one within the last
    found = joined([maps], grid, [THERE, ABSENT, ABSENT, ABSENT])[0]
    assert (pixels(found) == (disc(*size, 80, 160) > 0).numpy()).all()
    assert found.presence.status != "empty"
    assert pixels(joined([maps], grid, [THERE, ABSENT, ABSENT, THERE])[0])[80, 560]


def test_a_photos_presence_comes_from_its_tiles() -> None:
    """A doubtful tile among many says little, a sure one a lot; the quality is that of the tiles with the mask."""
    one = photo_presence([THERE], [5.0], MaskSettings())
    assert one.presence == pytest.approx(0.9)
    assert one.quality == pytest.approx(0.6)
    weak = Presence(presence=0.6, quality=0.1, status="review")
    many = photo_presence([weak, *[ABSENT] * 99], [5.0] * 100, MaskSettings())
    assert many.presence is not None
    assert many.presence < 0.1
    assert many.status == "empty"
    sure = Presence(presence=0.9999, quality=0.9999 * 0.8, status="accepted")
    found = photo_presence([sure, *[ABSENT] * 99], [5.0] * 100, MaskSettings())
    assert found.presence is not None
    assert found.quality == pytest.approx(found.presence * 0.8)
    assert found.presence > 0.98
    equal = [Presence(presence=0.5, quality=0.25, status="review")] * 40  # tiles that say nothing
    assert photo_presence(equal, [1.0] * 40, MaskSettings(prevalence=0.5)).presence == pytest.approx(0.5)
    far = Presence(status="uncalibrated")
    assert photo_presence([far, far], [1.0, 1.0], MaskSettings()) == far
    assert photo_presence([UNCALIBRATED] * 2, [1.0, 1.0], MaskSettings()) == UNCALIBRATED


def test_run_lengths_of_columns_equal_those_of_the_whole_mask() -> None:
    mask = np.random.default_rng(0).random((37, 90)) > 0.5
    runs = ColumnRuns(37, 90)
    for first, last in ((0, 1), (1, 40), (40, 90)):
        runs.add(mask[:, first:last])
    assert runs.rle() == coco.encode(np.asfortranarray(mask, dtype=np.uint8))


def test_supports_are_cut_to_a_tile_around_their_mark() -> None:
    photo = np.random.default_rng(0).integers(0, 255, (400, 600, 3), dtype=np.uint8)
    mask = torch.zeros(400, 600, dtype=torch.bool)
    mask[10:40, 300:330] = True
    box = torch.tensor([300., 10, 330, 40])
    marks = [Prompt(kind=PromptKind.MASK, mask=mask), Prompt(kind=PromptKind.BOX, box=box),
             Prompt(kind=PromptKind.POINTS, points=torch.tensor([[300., 10], [330, 40], [5, 5]]),
                    labels=torch.tensor([1, 1, 0]))]
    images, cut = cut_supports([photo] * 3, marks, 128)
    for image in images:
        assert (image == photo[:128, 251:379]).all()
    assert cut[0].mask is not None
    assert (cut[0].mask == mask[:128, 251:379]).all()
    assert cut[1].box is not None
    assert cut[1].box.tolist() == [49, 10, 79, 40]
    assert cut[2].points is not None
    assert cut[2].points.tolist() == [[49, 10], [79, 40]]
    assert cut_supports([photo], marks[:1], 600)[0][0] is photo
    wide = Prompt(kind=PromptKind.BOX, box=torch.tensor([0., 0, 300, 50]))
    assert cut_supports([photo], [wide], 128)[0][0].shape == (300, 300, 3)


def test_auto_looks_at_the_size_of_the_supports_objects() -> None:
    photo = np.zeros((4000, 6000, 3), dtype=np.uint8)
    small, large = (Prompt(kind=PromptKind.BOX, box=torch.tensor([100., 100, 100 + side, 100 + side]))
                    for side in (100, 500))
    point = Prompt(kind=PromptKind.POINTS, points=torch.tensor([[5., 5]]), labels=torch.tensor([1]))
    assert fitting_side([photo], [small], 256) == 800  # 100 px become 32 of the square's 256
    assert fitting_side([photo], [small], 1024) == 0  # 100 px are 21 of the square's 1024 without tiles
    assert fitting_side([photo], [large], 256) == 0
    assert fitting_side([photo] * 2, [small, point], 256) == 800
    assert resolve_side("auto", [photo], [small], 256) == 800
    assert resolve_side(640, [photo], [point], 256) == 640
    with pytest.raises(FssError, match="auto needs a mask or a box"):
        resolve_side("auto", [photo], [point], 256)


def test_mistakes_in_the_settings_are_named() -> None:
    assert tile_mistake(0, 0.25, "prompts") == ""
    assert tile_mistake("auto", 0.5, "pieces") == ""
    assert "no effect" in tile_mistake(0, 0.3, "none")
    assert "at least 64" in tile_mistake(10, 0.25, "none")
    assert "0 and 0.5" in tile_mistake(256, 0.7, "none")
    assert "not tiles" in tile_mistake(256, 0.25, "model")
    assert "not tiles" in tile_mistake(256, 0.25, "prompts")


def test_negative_examples_are_cut_but_say_nothing_about_size() -> None:
    """Would catch a whole negative photo that makes small objects large, and negative points that are cut away."""
    photos = [np.zeros((1000, 1000, 3), np.uint8)] * 2
    small = Prompt(kind=PromptKind.BOX, box=torch.tensor([500.0, 500.0, 510.0, 510.0]))
    whole = Prompt(kind=PromptKind.MASK, mask=torch.ones(1000, 1000, dtype=torch.bool), negative=True)
    assert fitting_side(photos, [small, whole], 256) == fitting_side(photos[:1], [small], 256)
    off = Prompt(kind=PromptKind.POINTS, points=torch.tensor([[900.0, 100.0]]), labels=torch.tensor([0]), negative=True)
    (image,), (moved,) = cut_supports(photos[:1], [off], 256)
    assert image.shape == (256, 256, 3)
    assert moved.points is not None
    assert moved.points.tolist() == [[156.0, 100.0]], "the tile ends with the photo"
