"""What a photo is segmented for: support sets, and the masks that are wanted of their classes."""

from __future__ import annotations

from typing import Any

from fss_models.errors import FssError
from pipelines.config.wanted import CALIBRATED, Wanted

MAX_CLASSES = 256  # of one request
PREVALENCE, EMPTY_BELOW, REVIEW_BELOW = (Wanted.model_fields[k].default for k in CALIBRATED)


class MaskRequest(Wanted):
    """C classes, one support set each: every photo gets C masks, in this order."""

    support_ids: tuple[str, ...]

    def body(self) -> dict[str, Any]:
        """The fields of a `POST /v1/segment` body: `support_id` for one class; other defaults are omitted."""
        one = len(self.support_ids) == 1
        ids = {"support_id": self.support_ids[0]} if one else {"support_ids": list(self.support_ids)}
        return {**ids, "threshold": self.threshold, **self.changed()}


for _name in CALIBRATED:  # the service's parser reads the defaults of these from the class
    setattr(MaskRequest, _name, Wanted.model_fields[_name].default)


def check_overlaps(overlaps: Any, classes: int) -> None:
    """Raises `FssError` for an unknown value, and for `resolve` with fewer than two classes."""
    if overlaps not in ("keep", "resolve"):
        raise FssError(f"overlaps is {str(overlaps)[:40]!r}", hint="write keep or resolve")
    if overlaps == "resolve" and classes < 2:
        raise FssError("overlaps is resolve, but there is one class", hint="leave overlaps out, or give more classes")
