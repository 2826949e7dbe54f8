"""glibc's allocator, told to keep what a process frees: its next step takes it again.

As it comes, glibc gives every large array back to the system and asks for it anew a moment later; the pages are then
zeroed and mapped one by one, which took 10 to 25 % of a training's CPU time. With threads of their own arenas the same
memory is also held several times. A process keeps the size of its peak; other systems and C libraries take no notice.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

ENVIRONMENT = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "2000000000"}
_PARAMETERS = {"MALLOC_ARENA_MAX": -8, "MALLOC_MMAP_MAX_": -4, "MALLOC_TRIM_THRESHOLD_": -1}  # malloc.h: M_ARENA_MAX...


def keep_freed_memory() -> None:
    """For this process, best before it has threads; `ENVIRONMENT` does it for those it starts. A user's value wins."""
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for name, number in _PARAMETERS.items():
            if name not in os.environ:
                mallopt(number, int(ENVIRONMENT[name]))
