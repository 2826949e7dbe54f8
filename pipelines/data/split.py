"""The split of photos into train and test. Only evaluation opens test photos.

Either a JSON file names the photos of both splits; photos it does not name are in neither and are listed in
failures.parquet. Or the split of a photo follows from the seed and a hash of its name, so adding photos does not move
others.
"""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath

from fss_models.errors import FssError
from pipelines.base.storage import Store
from pipelines.config.data import DataConfig

NOT_NAMED = "the split file names this photo in neither train nor test"


class Splitter:
    """Maps file name -> "train", "test" or None. Raises `FssError` for a split file that is missing or inconsistent."""

    def __init__(self, cfg: DataConfig) -> None:
        self._cfg = cfg.split
        self._named = _read(cfg) if cfg.split.file else None

    def __call__(self, file_name: str) -> str | None:
        """The split of a photo, None if the split file does not name it. Names are compared without their folders."""
        if self._named is not None:
            name = PurePosixPath(file_name)
            return self._named.get(name.name, self._named.get(name.stem))
        digest = hashlib.sha256(f"{self._cfg.seed}:{file_name}".encode()).digest()
        return "test" if int.from_bytes(digest[:8], "big") < self._cfg.test_fraction * 2**64 else "train"

    @property
    def fingerprint(self) -> str:
        """A hash that changes when the split of any photo may change."""
        named = sorted(self._named.items()) if self._named is not None else (self._cfg.seed, self._cfg.test_fraction)
        return hashlib.sha256(repr(named).encode()).hexdigest()


def _read(cfg: DataConfig) -> dict[str, str]:
    document = Store(cfg.split.file).read_json()
    key = cfg.split.key or PurePosixPath(cfg.source.root.rstrip("/")).name
    entry = document.get(key) if isinstance(document, dict) else None
    if not isinstance(entry, dict) or not {"train", "test"} <= entry.keys():
        keys = [k for k, v in document.items() if isinstance(v, dict)] if isinstance(document, dict) else []
        raise FssError(f"the file has no entry {key!r} with train and test", where=cfg.split.file,
                       hint=f"set data.split.key to one of: {', '.join(keys) or '(the file has no entries)'}")
    named = {PurePosixPath(n).name: "train" for n in entry["train"]}
    test = {PurePosixPath(n).name for n in entry["test"]}
    for both in sorted(test & named.keys()):
        raise FssError(f"{both} is in train and in test", where=f"{cfg.split.file} {key}")
    return named | dict.fromkeys(test, "test")
