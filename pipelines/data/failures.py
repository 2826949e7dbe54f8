"""The rows of failures.parquet as a person reads them: how many of each kind, with the first of each in full."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

_NUMBER = re.compile(r"\d+(\.\d+)?")
_NAMES = re.compile(r"\(.*\)|'[^']*'|\S*/\S*")
KINDS = 4  # of which the first are shown


def kind_of(reason: str) -> str:
    """A reason without what differs from photo to photo: its place (all before the last colon), numbers and names."""
    return _NUMBER.sub("#", _NAMES.sub("", reason.rpartition(": ")[2])).strip()


def told(rows: Iterable[dict[str, Any]], limit: int = KINDS) -> list[str]:
    """One line for each kind of failure (schema `FAILURES`), the most frequent first, and one for the rest.

    A line has the count and the first of the kind with file, annotation and reason: `3 like a.jpg: line 2: ...`.
    """
    first: dict[tuple[str, str], str] = {}
    counts: dict[tuple[str, str], int] = {}
    for row in rows:
        kind = (row["stage"], kind_of(row["reason"]))
        first.setdefault(kind, f"{row['file_name']}: {row['reason']}")
        counts[kind] = counts.get(kind, 0) + 1
    ordered = sorted(counts, key=lambda k: -counts[k])
    lines = [f"{counts[k]} like {first[k]}" if counts[k] > 1 else f"1: {first[k]}" for k in ordered[:limit]]
    rest = ordered[limit:]
    return lines + ([f"{sum(counts[k] for k in rest)} of {len(rest)} other kinds"] if rest else [])
