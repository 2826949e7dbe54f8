"""Files that systems and tools leave among people's own: every listing skips them, local or s3://."""

from __future__ import annotations

_NAMES = frozenset({"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin",
                    "system volume information"})


def is_junk(path: str) -> bool:
    """Whether a path relative to a root, with slashes, is no file of the person's.

    Such are hidden files and everything in hidden folders (names that begin with a dot: `._1.jpg`, `.DS_Store`,
    `.ipynb_checkpoints/1.jpg`, unfinished downloads), and what macOS, Windows and Synology leave (`__MACOSX`,
    `Thumbs.db`, `desktop.ini`, `@eaDir`).
    """
    return any(part.startswith(".") or part.lower() in _NAMES for part in path.split("/"))
