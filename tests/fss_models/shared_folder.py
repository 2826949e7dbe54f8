"""Where the reference tensors are, if they are: `../shared` beside the checkout, or FSS_SHARED."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("FSS_SHARED", Path(__file__).resolve().parents[3] / "shared"))
GOLDEN = SHARED / "golden"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden cases in ../shared are not here")
