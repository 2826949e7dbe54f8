"""What a photo is segmented for: support sets, and the masks that are wanted of their classes."""

from __future__ import annotations

from typing import Any

from fss_models.errors import FssError
from pipelines.config.wanted import Overlaps, Wanted

MAX_CLASSES = 256  # of one request


class MaskRequest(Wanted):
    """C classes, one support set each: every photo gets C masks, in this order."""

    support_ids: tuple[str, ...]

    def body(self) -> dict[str, Any]:
        """The fields of a `POST /v1/segment` body: `support_id` for one class; other defaults are omitted."""
        one = len(self.support_ids) == 1
        ids = {"support_id": self.support_ids[0]} if one else {"support_ids": list(self.support_ids)}
        return {**ids, "threshold": self.threshold, **self.changed()}


def check_overlaps(overlaps: Overlaps, classes: int) -> None:
    """Raises `FssError` for `resolve` with fewer than two classes."""
    if overlaps == "resolve" and classes < 2:
        raise FssError("overlaps is resolve, but there is one class", hint="leave overlaps out, or give more classes")
