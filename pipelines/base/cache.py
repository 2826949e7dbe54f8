"""The only folder outside the workspace that fss writes to: FSS_CACHE, by default ~/.cache/fss."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir(*parts: str) -> Path:
    """Path of a folder in the cache. The folder is not created; whoever writes there does that."""
    return Path(os.environ.get("FSS_CACHE", "~/.cache/fss")).expanduser().joinpath(*parts)
