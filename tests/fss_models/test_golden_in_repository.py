"""One case of each official code lies in the repository, so that every checkout's tests hold our methods to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fss_models.verification.frame import run_folder
from tests.fss_models.methods_here import needs_transformers

GOLDEN = Path(__file__).parents[1] / "golden"


CASES = [("sansa", 4), ("fssam", 60), ("fcp", 17), ("vrp_sam", 16), ("pfenet", 20), ("ssp", 18),
         ("cyctr", 24), ("insid3", 62), ("gf_sam", 45), ("matcher", 26),
         pytest.param("sam3", 110, marks=needs_transformers)]


@pytest.mark.parametrize(("method", "least"), CASES)
def test_our_method_gives_the_official_tensors(method: str, least: int) -> None:
    checks = list(run_folder(str(GOLDEN / method)))
    assert len(checks) >= least
    assert not [f"{c.case} {c.quantity}: {c.error:.1e} {c.note}" for c in checks if not c.passed]
