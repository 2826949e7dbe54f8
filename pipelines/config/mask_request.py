"""What is asked of a photo: the masks of which support sets, from which probability on, and what overlaps mean."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from fss_models.errors import FssError

Overlaps = Literal["keep", "resolve"]
PREVALENCE, EMPTY_BELOW, REVIEW_BELOW = 0.5, 0.5, 0.5
MAX_CLASSES = 256  # of one question


@dataclass(frozen=True, kw_only=True)
class MaskRequest:
    """C classes, one support set each: every photo gets C masks, in this order.

    threshold  probability above which a pixel is the object
    overlaps   keep: each class has its own mask (multi-label). resolve: a pixel goes to the class for which its
               probability times the mask's score is highest (a semantic map); equal ones to the first
    pairs      (class, photo) pairs a call of the model, as whole classes; 0: one class. With one class a call the
               masks are bit for bit those of C jobs with a class each
    prevalence    share of the photos that show a class, as far as one knows; read where the bundle has a calibrator,
                  as are: empty_below, the probability below which a class is not there, and review_below, the
                  probability of a good mask below which somebody should look
    """

    support_ids: tuple[str, ...]
    threshold: float = 0.5
    overlaps: Overlaps = "keep"
    pairs: int = 0
    prevalence: float = PREVALENCE
    empty_below: float = EMPTY_BELOW
    review_below: float = REVIEW_BELOW

    def json(self) -> dict[str, Any]:
        """As a request of the service has it: `support_id` where there is one class."""
        given = asdict(self)
        ids = given.pop("support_ids")
        kept = {k: v for k, v in given.items() if k == "threshold" or v != getattr(MaskRequest, k)}
        return {**({"support_id": ids[0]} if len(ids) == 1 else {"support_ids": list(ids)}), **kept}


def check_overlaps(overlaps: Any, classes: int) -> None:
    """Raises `FssError` for an unknown word, and where there is nothing to resolve."""
    if overlaps not in ("keep", "resolve"):
        raise FssError(f"overlaps is {str(overlaps)[:40]!r}", mend="say keep or resolve")
    if overlaps == "resolve" and classes < 2:
        raise FssError("there is one class: no overlaps to resolve", mend="leave overlaps out, or give more classes")
