"""The events of a labelling job: its end, however it comes, for the URL of `label.notify`."""

from __future__ import annotations

from typing import Any

from pipelines.base.storage import Store
from pipelines.base.webhook import ATTEMPTS, Outbox
from pipelines.labelling.manifest import JobManifest
from pipelines.labelling.parts import finished_chunks

COUNTS = ("images", "with_object", "without_object", "failed", "labels")  # of a summary, in an event


class JobEvents:
    """Tells `url` (empty: nobody) how the job in the folder `out` has ended; its counts are of `manifest`."""

    def __init__(self, out: Store, manifest: JobManifest, url: str) -> None:
        self._out, self.manifest = out, manifest
        self._outbox = Outbox(out, url) if url else None

    def done(self, summary: dict[str, Any], key: str = "done") -> dict[str, Any]:
        """Tell that the labels of `summary` are written, once for each `key`. Returns the summary."""
        if self._outbox:
            counts = {k: summary[k] for k in COUNTS if k in summary}
            self._outbox.tell("label.done", {**self._about("done"), **counts}, key=key)
        return summary

    def ended(self, state: str, error: str = "") -> None:
        """Tell that the job has stopped or failed. Of a job that a person stops it is tried once: they wait."""
        if self._outbox:
            manifest = self.manifest
            labelled = sum(len(manifest.rows(c)) for c in finished_chunks(self._out) if c < manifest.chunks)
            self._outbox.tell(f"label.{state}", {**self._about(state), "images": manifest.images_count,
                                                 "labelled": labelled, "error": error},
                              attempts=1 if state == "stopped" else ATTEMPTS)

    def _about(self, state: str) -> dict[str, Any]:
        return {"job": self._out.name, "state": state, "out": self._out.url, "classes": self.manifest.classes}
