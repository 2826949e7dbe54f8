"""An atomic, flushed `Store.write_bytes`, compared with a plain write of the same bytes, on a local disk."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.timing import time_interleaved
from pipelines.base.storage import Store

CONFIG: dict[str, Any] = {"bytes": 4_000_000, "files": 16, "repeats": 7, "threads": 1}


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Seconds that each way takes to write all files, and their ratio."""
    data = bytes(config["bytes"])
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)

        def atomic() -> None:
            for i in range(config["files"]):
                store.write_bytes(f"atomic-{i}", data)

        def plain() -> None:
            for i in range(config["files"]):
                Path(folder, f"plain-{i}").write_bytes(data)

        times = time_interleaved({"atomic": atomic, "plain": plain}, config["repeats"])
    return {"ratio": times["atomic"] / times["plain"], "seconds": times}
