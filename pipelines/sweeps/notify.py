"""The events of a sweep: its end, however it comes, for the URL of `sweep.notify`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from pipelines.base.storage import Store
from pipelines.base.webhook import ATTEMPTS, Outbox, read_secret
from pipelines.evaluation.results import RunResult


class SweepEvents:
    """Tells `url` (empty: nobody) how the sweep in a workspace has ended. Raises `FssError` without a secret."""

    def __init__(self, workspace: Store, url: str) -> None:
        self._workspace = workspace
        self._outbox = Outbox(workspace, url) if url else None
        if url:
            read_secret()

    def done(self, results: Sequence[RunResult]) -> None:
        """Tell that every run has a result, once for these results."""
        if self._outbox:
            content = sorted(f"{r.spec.name} {r.bundle_id} {r.error}" for r in results)
            key = hashlib.sha256("\n".join(content).encode()).hexdigest()
            self._outbox.tell("sweep.done", {**self._about("done"), "runs": len(results),
                                             "failed": sum(bool(r.error) for r in results)}, key=key)

    def ended(self, state: str, error: str = "") -> None:
        """Tell that the sweep has stopped or failed."""
        if self._outbox:
            self._outbox.tell(f"sweep.{state}", {**self._about(state), "error": error},
                              attempts=1 if state == "stopped" else ATTEMPTS)

    def _about(self, state: str) -> dict[str, str]:
        return {"sweep": self._workspace.name, "state": state, "out": self._workspace.url}
