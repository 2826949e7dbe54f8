"""Limits of every comparison with stored tensors, by method and kind of tensor.

The limits hold on any processor: kernels of other instruction sets and other numbers of threads add up in another
order. Errors are max |difference| / max |reference| unless a line says otherwise. Gradients get ten times the room of
forward tensors, because every rounding of the forward pass enters them once more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Bound:
    """Limits for the errors of one kind of tensor.

    tolerance  the largest error that an equal implementation may have
    floor      the error that a deliberate mistake must exceed in at least one kind; between the two lies the room for
               processors we have not seen
    """

    tolerance: float
    floor: float

    def times(self, factor: float) -> Bound:
        """Both limits multiplied, for errors in another unit."""
        return Bound(tolerance=self.tolerance * factor, floor=self.floor * factor)


EXACT = Bound(tolerance=0.0, floor=0.0)
#: scores computed from stored masks, in double precision
SCORE = Bound(tolerance=1e-6, floor=1e-5)
#: single functions, also of SANSA and FSSAM
UNIT = Bound(tolerance=1e-6, floor=1e-5)

#: FCP and VRP-SAM, after the README of their golden cases (`parameter`: |difference| / learning rate)
_PROMPTING = {
    "forward": Bound(tolerance=1e-4, floor=1e-3),
    "loss": Bound(tolerance=1e-4, floor=1e-3),
    "gradient": Bound(tolerance=1e-3, floor=1e-2),
    "parameter": Bound(tolerance=1e-2, floor=1e-1),
    # four figures of each tensor of a full-size case: the last sums terms of both signs, which magnifies rounding
    "digest": Bound(tolerance=1e-3, floor=1e-2),
}

#: BAM and HDMNet, after the READMEs of their golden cases
_BASE_LEARNER = {
    "forward": Bound(tolerance=1e-4, floor=1e-3),
    "loss": Bound(tolerance=1e-4, floor=1e-3),
    "gradient": Bound(tolerance=1e-3, floor=1e-2),
    "parameter": Bound(tolerance=1e-4, floor=1e-3),
}
#: GF-SAM and Matcher, after the READMEs of their golden cases: reals relative to the largest, discrete ones equal
_POINTS = {"real": Bound(tolerance=1e-4, floor=1e-3), "discrete": EXACT}

#: method -> kind -> limits for the golden cases; the figures are those of the READMEs in the cases' folders
GOLDEN: Mapping[str, Mapping[str, Bound]] = {
    "bam": _BASE_LEARNER,
    "hdmnet": _BASE_LEARNER,
    "fcp": _PROMPTING,
    "vrp_sam": _PROMPTING,
    "gf_sam": _POINTS,
    "matcher": _POINTS | {"pixel": Bound(tolerance=1e-3, floor=1e-2)},  # areas and stabilities: single pixels may flip
    "sansa": {  # loss and step are absolute, gradients ||difference|| / ||reference||
        "backbone": Bound(tolerance=1e-5, floor=1e-4),
        "adapter": Bound(tolerance=1e-5, floor=1e-4),
        "memory": Bound(tolerance=1e-3, floor=1e-2),
        "logits": Bound(tolerance=1e-3, floor=1e-2),
        "loss": Bound(tolerance=2e-5, floor=2e-4),
        "gradients": Bound(tolerance=5e-3, floor=5e-2),
        "grad norm": Bound(tolerance=3e-3, floor=3e-2),
        "step": Bound(tolerance=1e-6, floor=1e-5),
    },
    "insid3": {
        "forward": Bound(tolerance=1e-4, floor=1e-3),
        "debiased": Bound(tolerance=1e-3, floor=1e-2),  # the basis, and what it is taken from
    },
    "fssam": {  # |difference| beyond FSSAM_RELATIVE * |reference|, by the first matching beginning of a name
        "out/loss": Bound(tolerance=1e-5, floor=1e-4),
        "out/priors": Bound(tolerance=2e-5, floor=2e-4),
        "ppg/": Bound(tolerance=2e-5, floor=2e-4),
        "feat/": Bound(tolerance=1e-4, floor=1e-3),
        "dino/": Bound(tolerance=1e-4, floor=1e-3),
        "mem/": Bound(tolerance=1e-4, floor=1e-3),
        "imr/": Bound(tolerance=1e-4, floor=1e-3),
        "scma/att_bias": Bound(tolerance=3e-4, floor=3e-3),
        "scma/": Bound(tolerance=1e-4, floor=1e-3),
        "dec/best_index": EXACT,
        "dec/": Bound(tolerance=1e-4, floor=1e-3),
        "out/logits": Bound(tolerance=1e-4, floor=1e-3),
        "gradient norms": Bound(tolerance=1e-6, floor=1e-5),  # beyond FSSAM_GRADIENT_RELATIVE * |reference|
        "gradients": Bound(tolerance=1e-3, floor=1e-2),
    },
    "sam3": {
        "forward": Bound(tolerance=1e-4, floor=1e-3),
        "pixels": Bound(tolerance=1e-3, floor=1e-2),  # share of the pixels of a mask that differ
        "boxes": Bound(tolerance=1e-6, floor=1e-5),  # absolute, in shares of the picture
        "pixel boxes": Bound(tolerance=1e-2, floor=1e-1),  # absolute, in pixels of the photo
        "resize": Bound(tolerance=2, floor=20),  # levels of 255 between PIL's and torchvision's resize
    },
}
FSSAM_RELATIVE, FSSAM_GRADIENT_RELATIVE = 1e-4, 1e-3

#: kind -> limits for outputs of our own verified code on small models with drawn values, kept in the tests' data
STORED: Mapping[str, Bound] = {
    "forward": Bound(tolerance=2e-4, floor=1e-2),
    "loss": Bound(tolerance=1e-4, floor=2e-3),
    "gradient": Bound(tolerance=1e-3, floor=1e-2),
}
