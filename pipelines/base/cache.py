"""The one folder outside the workspace: FSS_CACHE, by default ~/.cache/fss."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir(*parts: str) -> Path:
    """A folder of the cache; it is made by whoever writes there."""
    return Path(os.environ.get("FSS_CACHE", "~/.cache/fss")).expanduser().joinpath(*parts)
