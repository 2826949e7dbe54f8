"""Memory that a process frees stays with it: the next step faults no page in."""

import os
import platform
import subprocess
import sys

import pytest

from fss_models.allocator import ENVIRONMENT

if platform.libc_ver()[0] != "glibc":
    pytest.skip("needs glibc", allow_module_level=True)

STEPS = """
import resource, threading
{first}
import numpy as np

def step():
    kept = [np.ones(400_000) for _ in range(75)]  # 240 MB; numpy wants huge pages for arrays from 4 MB on

def steps():
    step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        step()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

{then}
"""


def faults(first: str, then: str, env: dict[str, str]) -> int:
    """Pages mapped by five steps after the first."""
    left = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run([sys.executable, "-c", STEPS.format(first=first, then=then)], env={**left, **env},
                          capture_output=True, text=True, check=True)
    return int(done.stdout)


KEEP = "from fss_models.allocator import keep_freed_memory; keep_freed_memory()"
THREAD = "t = threading.Thread(target=steps); t.start(); t.join()"


@pytest.mark.parametrize("then", ["steps()", THREAD])
@pytest.mark.parametrize(("first", "env"), [(KEEP, {}), ("", ENVIRONMENT)])
def test_freed_memory_is_used_again(first: str, env: dict[str, str], then: str) -> None:
    assert faults(first, then, env) < 1000


def test_the_allocator_as_it_comes_asks_for_it_anew() -> None:
    assert faults("", "steps()", {}) > 100_000


def test_a_value_of_the_user_wins() -> None:
    given = {"MALLOC_TRIM_THRESHOLD_": "1000000", "MALLOC_MMAP_MAX_": "65536", "MALLOC_ARENA_MAX": "8"}
    assert faults(KEEP, "steps()", given) > 100_000
