"""What a photo is segmented for: support sets, the threshold of a mask, and how overlaps are treated."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from fss_models.errors import FssError

Overlaps = Literal["keep", "resolve"]
PREVALENCE, EMPTY_BELOW, REVIEW_BELOW = 0.5, 0.5, 0.5
MAX_CLASSES = 256  # of one request


@dataclass(frozen=True, kw_only=True)
class MaskRequest:
    """C classes, one support set each: every photo gets C masks, in this order.

    threshold     pixels above this probability belong to the object
    overlaps      keep: each class has its own mask (multi-label). resolve: a pixel belongs to the class for which its
                  probability times the mask's score is highest (a semantic map); the first of equal ones wins
    pairs         (class, photo) pairs in a call of the model, always whole classes; 0: one class a call. With one
                  class a call the masks equal those of C jobs with one class each bit for bit

    The remaining fields are used where the bundle has a calibrator:

    prevalence    estimated share of the photos that show a class
    empty_below   a class whose probability is below this gets an empty label
    review_below  a mask whose probability of being good is below this should be reviewed by a person
    """

    support_ids: tuple[str, ...]
    threshold: float = 0.5
    overlaps: Overlaps = "keep"
    pairs: int = 0
    prevalence: float = PREVALENCE
    empty_below: float = EMPTY_BELOW
    review_below: float = REVIEW_BELOW

    def json(self) -> dict[str, Any]:
        """The fields of a `POST /v1/segment` body: `support_id` for one class; other defaults are omitted."""
        fields = asdict(self)
        ids = fields.pop("support_ids")
        settings = {k: v for k, v in fields.items() if k == "threshold" or v != getattr(MaskRequest, k)}
        return {**({"support_id": ids[0]} if len(ids) == 1 else {"support_ids": list(ids)}), **settings}


def check_overlaps(overlaps: Any, classes: int) -> None:
    """Raises `FssError` for an unknown value, and for `resolve` with fewer than two classes."""
    if overlaps not in ("keep", "resolve"):
        raise FssError(f"overlaps is {str(overlaps)[:40]!r}", hint="write keep or resolve")
    if overlaps == "resolve" and classes < 2:
        raise FssError("overlaps is resolve, but there is one class", hint="leave overlaps out, or give more classes")
