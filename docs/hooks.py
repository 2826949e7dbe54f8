"""Makes the reference pages and the drawings when the documentation is built: nothing of them is kept by hand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))  # MkDocs loads this file by path

import drawings
import generate


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages and pictures."""
    for name, text in {**generate.pages(), **drawings.pictures()}.items():
        files.append(File.generated(config, name, content=text))
    return files
