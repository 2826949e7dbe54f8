"""Places of weight files on this machine."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fss_models.errors import FssError

SUFFIXES = (".safetensors", ".pt", ".pth")


def file_sha256(path: str | Path) -> str:
    """The hex sha256 of a file, read in pieces: a checkpoint may not fit in memory twice."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weight_file(place: str | Path) -> Path:
    """The weight file at `place`: a file, or a folder with one; safetensors come before pickled files.

    Raises `FssError` if there is none, or a folder has several.
    """
    path = Path(place).expanduser()
    if path.is_dir():
        inside = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES)
        inside = [p for p in inside if p.suffix == SUFFIXES[0]] or inside
        if len(inside) != 1:
            names = ", ".join(p.name for p in inside) or "none"
            raise FssError(f"this folder has {len(inside)} weight files ({names}), not one", where=str(place),
                           hint=f"give the file; known endings: {', '.join(SUFFIXES)}")
        return inside[0]
    if not path.is_file():
        raise FssError("there is no such weight file", where=str(place), hint="check the path")
    return path
