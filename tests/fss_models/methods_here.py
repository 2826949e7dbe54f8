"""Methods as parameters of tests; those that need a package that is not installed are skipped."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest

from fss_models import registry

NEEDS = {"sam3": "transformers"}
needs_transformers = pytest.mark.skipif(find_spec("transformers") is None, reason="the extra `sam3` is not installed")


def methods() -> list[Any]:
    """All methods."""
    return [pytest.param(name, marks=[needs_transformers] if name in NEEDS else []) for name in registry.list_methods()]
