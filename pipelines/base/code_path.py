"""Where Ray's processes find this project's code.

Ray puts the working directory of a command in front of the path of all its processes. A folder there that is named
like a package of ours (`jobs`, `pipelines`, `infra`) would then be taken for it. `job_config` puts our own code first,
and the working directory behind it, only where the command itself imports from it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]  # the folder that has `pipelines`: a checkout, or site-packages


def worker_paths() -> list[str]:
    """The folders that Ray's processes put in front of their path, the last one first.

    An installed package is found without help: site-packages in front would hide modules of Python itself.
    """
    here, known = os.path.abspath(os.curdir), {os.path.abspath(p) for p in sys.path}
    script = os.path.dirname(os.path.realpath(sys.argv[0])) if sys.argv and sys.argv[0] else ""
    found = [p for p in (script, here) if p and p in known]
    return found if ROOT.name in ("site-packages", "dist-packages") else [*found, str(ROOT)]


def job_config() -> Any:
    """The `ray.job_config.JobConfig` of a command, whose processes take our code before that of any other folder."""
    from ray.job_config import JobConfig

    class OwnCodeFirst(JobConfig):
        """A JobConfig to which Ray adds no folder of its own choice."""

        def _runtime_env_has_working_dir(self) -> bool:
            return True  # Ray adds the script's folder and the working directory only where this is false

    return OwnCodeFirst(_py_driver_sys_path=worker_paths())
