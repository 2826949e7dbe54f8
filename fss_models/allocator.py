"""Settings of glibc's allocator that keep freed memory in the process, so that the next step can use it again.

By default glibc returns every large array to the system and requests it again a moment later. The kernel then zeroes
and maps the pages one by one, which took 10 to 25 % of a training's CPU time. By default each thread also has an arena
of its own, which holds the same memory several times. With these settings a process stays at its peak size. They have
no effect on other systems and C libraries.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

ENVIRONMENT = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "2000000000"}
_PARAMETERS = {"MALLOC_ARENA_MAX": -8, "MALLOC_MMAP_MAX_": -4, "MALLOC_TRIM_THRESHOLD_": -1}  # malloc.h: M_ARENA_MAX...


def keep_freed_memory() -> None:
    """Apply the settings to this process, best before it starts threads; `ENVIRONMENT` applies them to child processes.

    A variable that the user has set wins.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for name, number in _PARAMETERS.items():
            if name not in os.environ:
                mallopt(number, int(ENVIRONMENT[name]))
