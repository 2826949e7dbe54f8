"""Refuses secrets in a job's command line and runtime environment, which every user of the cluster can read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping

from fss_models.errors import FssError

NAME = re.compile(r"secret|token|passw|credential|access_?key|private_?key|api_?key", re.IGNORECASE)
IN_URL = re.compile(r"://[^/@\s:]+:[^/@\s]+@")
SHORTEST = 8  # length of the shortest value that is searched for: shorter ones may be everyday words
MEND = "set the secret on the cluster's nodes, as infra/README.md shows"


def refuse_secrets(arguments: Iterable[str], variables: Mapping[str, str]) -> None:
    """Raise `FssError` if an argument or a variable contains a secret; the error does not show the secret.

    A secret is a variable with a name like `*_TOKEN`, an address with a password, or the value of such a variable of
    this process.
    """
    for name in variables:
        if NAME.search(name):
            raise FssError(f"the variable {name} looks like a secret, and other users of the cluster could read it",
                           hint=MEND)
    known = [v for k, v in os.environ.items()
             if NAME.search(k) and not k.endswith(("_ID", "_PATH")) and len(v) >= SHORTEST]
    for text in (*arguments, *variables.values()):
        if IN_URL.search(text):
            raise FssError("an address contains a password, and other users of the cluster could read it", hint=MEND)
        if any(secret in text for secret in known):
            raise FssError("an argument or a variable contains the value of one of your secret environment variables",
                           hint=MEND)
