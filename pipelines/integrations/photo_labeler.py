"""Labels for plug-ins of other tools: photos in, labels out, by a bundle in this process or by a running service."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image

from fss_models.errors import FssError
from fss_models.forms import read_form
from pipelines.config.mask_request import MaskRequest, check_overlaps
from pipelines.config.wanted import Wanted
from pipelines.inference.calls import power_of_two
from pipelines.inference.label_sets import read_label_set
from pipelines.inference.labeler import Labeler
from pipelines.inference.masks import Labels, PhotoFailure
from pipelines.inference.supports import SupportSet
from pipelines.labelling.engines import Engine, service_engine
from pipelines.serving.client import Client

BATCH = 8
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
Call = Callable[[list[bytes]], list[Labels | PhotoFailure]]


class PhotoLabeler:
    """Labels photos with the classes of a supports file or folder.

    `supports` is what `fss label --supports` may be. With `url` the running service there computes (its token is read
    from FSS_TOKEN); else `bundle` (empty: `shipped`) does in this process, on `device` (empty: a GPU if there is one).
    `settings` are those of `Wanted`: threshold, instances, tile and so on. With `exclusive` a pixel has one class at
    most (`overlaps` is resolve where there are several classes). Raises `FssError` for a mistake in any of them, for a
    bundle that cannot be read, and where no service answers.

    Attributes:
        classes: the names of the classes, in the order of a photo's labels
    """

    def __init__(self, supports: str, *, bundle: str = "", url: str = "", device: str = "", exclusive: bool = False,
                 **settings: Any) -> None:
        if url and (bundle or device):
            raise FssError("url names a service, which has a bundle and a device of its own",
                           hint="leave out url, or leave out bundle and device")
        sets = read_label_set(supports)
        self.classes = tuple(s.class_name for s in sets)
        if exclusive and len(sets) > 1 and settings.setdefault("overlaps", "resolve") != "resolve":
            raise FssError("overlaps is 'keep', but here a pixel has one class at most", hint="leave overlaps out")
        wanted = read_form(Wanted, settings, "settings")
        check_overlaps(wanted.overlaps, len(sets))
        request = MaskRequest(support_ids=tuple(s.support_id for s in sets), **wanted.wanted())
        self._open = ExitStack()
        self._call: Call = self._remote(url, sets, request) if url else _local(bundle, device, sets, request)

    def label(self, photos: Sequence[bytes]) -> list[Labels | PhotoFailure]:
        """One result for each photo (the bytes of its file), in order: a label for each class, or why there is none.

        Raises `FssError` when a service has failed several times.
        """
        return self._call(list(photos)) if photos else []

    def close(self) -> None:
        """Close the connections to the service, if there is one."""
        self._open.close()

    def _remote(self, url: str, sets: Sequence[SupportSet], request: MaskRequest) -> Call:
        client = Client(url, timeout_s=20)
        try:
            largest = int(client.health()["max_request_bytes"])
        except httpx.HTTPError as error:
            raise FssError("no service answers", where=url, hint="start it with `fss serve`") from error
        finally:
            client.close()
        engine = self._open.enter_context(service_engine(url, sets, largest, ""))
        return partial(_ask, engine, request)


def _local(bundle: str, device: str, sets: Sequence[SupportSet], request: MaskRequest) -> Call:
    labeler = Labeler(bundle or "shipped", device or ("cuda" if torch.cuda.is_available() else "cpu"))
    labeler.check(request)
    for supports in sets:
        labeler.add_support(supports)
    return lambda photos: labeler.label_classes(photos, request, power_of_two(len(photos), BATCH))


def _ask(engine: Engine, request: MaskRequest, photos: list[bytes]) -> list[Labels | PhotoFailure]:
    return [one for some in _requests(photos, engine.request_bytes) for one in engine.label(some, request)]


def _requests(photos: Sequence[bytes], most: int) -> Iterator[list[bytes]]:
    """The photos in groups of at most `BATCH` photos and `most` bytes, but at least one photo each."""
    group: list[bytes] = []
    for photo in photos:
        if group and (len(group) == BATCH or sum(map(len, group)) + len(photo) > most):
            yield group
            group = []
        group.append(photo)
    if group:
        yield group


def photo_bytes(photo: np.ndarray | Image.Image) -> bytes:
    """A photo, as an array [H, W], [H, W, 3] or [H, W, 4] of uint8 or an image, as a lossless PNG of the same pixels.

    What an image's EXIF data says about its orientation is not applied.
    """
    image = Image.fromarray(photo) if isinstance(photo, np.ndarray) else photo.copy()
    image = image if image.mode in PNG_MODES else image.convert("RGB")
    image.info = {}
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()
