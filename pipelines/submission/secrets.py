"""Refusing secrets where everybody on a cluster could read them: a job's command line and runtime environment."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping

from fss_models.errors import FssError

NAME = re.compile(r"secret|token|passw|credential|access_?key|private_?key|api_?key", re.IGNORECASE)
IN_URL = re.compile(r"://[^/@\s:]+:[^/@\s]+@")
SHORTEST = 8  # a shorter value of a variable may be an everyday word
MEND = "set it on the cluster's nodes, as infra/README.md shows"


def refuse_secrets(arguments: Iterable[str], variables: Mapping[str, str]) -> None:
    """Raises `FssError` if an argument or a variable names, holds or repeats a secret; the secret is not shown."""
    for name in variables:
        if NAME.search(name):
            raise FssError(f"{name} looks like a secret: others on the cluster could read it", mend=MEND)
    known = [v for k, v in os.environ.items()
             if NAME.search(k) and not k.endswith(("_ID", "_PATH")) and len(v) >= SHORTEST]
    for text in (*arguments, *variables.values()):
        if IN_URL.search(text):
            raise FssError("an address with a password in it: others on the cluster could read it", mend=MEND)
        if any(secret in text for secret in known):
            raise FssError("an argument holds the value of a secret variable of yours", mend=MEND)
