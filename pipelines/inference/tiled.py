"""Labels of photos in tiles: the key of a support set's memory at the tiles' scale, and a photo's labels from tiles."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import torch

from fss_models.errors import BadImage, FssError
from fss_models.photo_files import turned_size
from fss_models.presence import LabelJudge
from fss_models.tile_supports import UNKNOWN_SIZE
from fss_models.tiles import TileGrid, TileJoin, is_tiled
from pipelines.config.mask_request import MaskRequest
from pipelines.inference.calls import CallOutput, PairMask
from pipelines.inference.instances import with_instances
from pipelines.inference.masks import Labels, make_label, threshold_logit


def tile_key(support_id: str, side: int) -> str:
    """The key of the memory of a support set for tiles of `side` pixels; 0: for whole photos."""
    return f"{support_id}@{side}" if side else support_id


def split_key(key: str) -> tuple[str, int]:
    """The support set and side of a `tile_key`."""
    support_id, _, side = key.partition("@")
    return support_id, int(side or 0)


def at_tile(request: MaskRequest, fitting: Sequence[int | None] = ()) -> MaskRequest:
    """The request with a number for `tile`, and the keys of its memories for that.

    `fitting`: for auto, what `fitting_side` gives for each support set; the smallest tiles win. Raises `FssError` if a
    set has none.
    """
    if request.tile == "auto":
        known = [side for side in fitting if side is not None]
        if len(known) < len(fitting):
            raise FssError(UNKNOWN_SIZE, hint="give the side of a tile in pixels (label.tile)")
        side = min((s for s in known if s), default=0)
    else:
        side = request.tile
    return request.model_copy(update={"tile": side, "support_ids": tuple(tile_key(i, side)
                                                                        for i in request.support_ids)})


def needs_tiles(data: bytes, request: MaskRequest) -> bool:
    """Whether a photo is larger than the request's tiles, by its header. An unreadable photo is not."""
    with suppress(BadImage):
        return isinstance(request.tile, int) and is_tiled(turned_size(data), request.tile)
    return False


class TiledPhoto:
    """The labels of one photo, from what a model gives for its tiles, a few at a time."""

    def __init__(self, pixels: np.ndarray, request: MaskRequest, judge: LabelJudge | None, *, corners: bool) -> None:
        assert isinstance(request.tile, int)
        self.pixels, self.request, self._judge, self._corners = pixels, request, judge, corners
        self.grid = TileGrid.of(pixels.shape[:2], request.tile, request.tile_overlap)
        self._join = TileJoin(self.grid, len(request.support_ids), threshold_logit(request.threshold), request,
                              corners=corners, resolve=request.overlaps == "resolve")

    def add(self, outputs: Sequence[CallOutput]) -> None:
        """The next tiles: calls of the model, each with the same tiles and one class or several, all together."""
        tiles: dict[int, list[PairMask]] = {}
        for output in outputs:
            for at, pair in enumerate(output.pairs):
                if not pair.padding:
                    tiles.setdefault(pair.row, []).append(PairMask(output, at))
        for row in sorted(tiles):
            classes = sorted(tiles[row], key=lambda mask: mask.pair.number)
            read = [mask.read(self._judge, self.request) for mask in classes]
            self._join.add(torch.stack([logits for logits, _, _ in read]), [score for _, score, _ in read],
                           [presence for _, _, presence in read])

    def labels(self) -> Labels:
        """A label for each class, after the last tile."""
        return tuple(with_instances(make_label(one.rle, one.score, one.presence), self.request, None,
                                    corners=self._corners) for one in self._join.masks())
