"""Tables as text, for a terminal, a pipe or a file."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Collection, Sequence

GAP = 2  # spaces between columns
WORD = 24  # a longer word of a text may be broken
Rows = Sequence[Sequence[str]]


def text_table(rows: Rows, *, head: Sequence[str] = (), left: Collection[int] = (0,), rule: bool = True,
               width: int | None = None) -> str:
    """The rows, and a `head` with a `rule` below it, in aligned columns.

    The columns numbered in `left` hold text: they are aligned left, and folded where the table is wider than `width`
    (None: the terminal, or no limit where the output is none). The others hold figures: aligned right and not folded.
    If there is still no room, heads are folded too, and figures before a bracket: 1.2 (0.9 to 1.5). A column without
    any content is left out.
    """
    from rich.box import Box
    from rich.console import Console
    from rich.table import Table

    lines = [list(head), *map(list, rows)] if head else [list(row) for row in rows]
    shown = [i for i, column in enumerate(zip(*lines, strict=True)) if any(column)]
    lines, left = [[line[i] for i in shown] for line in lines], [k for k, i in enumerate(shown) if i in left]
    if not shown:
        return ""
    widths, room = _natural(lines), _terminal_width() if width is None else width
    least, heads = _least(lines, left), [h.replace(" ", "\n") for h in lines[0]]
    if head and _total(least) > room:
        least = _least([heads, *lines[1:]], left)
    if _total(least) > room:
        lines = [[c if i in left else c.replace(" (", "\n(") for i, c in enumerate(line)] for line in lines]
        least = _least([heads, *lines[1:]] if head else lines, left)
    widths = [w if i in left else min(w, n) for i, (w, n) in enumerate(zip(widths, least, strict=True))]
    for i in sorted(left, key=lambda i: least[i] - widths[i]):  # first the text that can become narrowest
        widths[i] = max(least[i], widths[i] - max(0, _total(widths) - room))
    ruled = Box("    \n    \n -- \n" + 5 * "    \n") if rule and head else None  # it takes one space of the gap
    table = Table(box=ruled, show_edge=False, pad_edge=False, padding=(0, GAP - bool(ruled), 0, 0),
                  show_header=bool(head), header_style="")
    for i, own in enumerate(widths):
        table.add_column(lines[0][i] if head else "", width=own, justify="left" if i in left else "right",
                         overflow="fold")
    for row in lines[bool(head):]:
        table.add_row(*row)
    out = io.StringIO()
    Console(file=out, width=_total(widths), height=25, color_system=None, markup=False, emoji=False,
            highlight=False).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _natural(lines: Rows) -> list[int]:
    """The characters of the longest line of each column, at least 1; an East Asian one counts as two."""
    from rich.cells import cell_len

    return [max(1, *(cell_len(part) for cell in column for part in cell.split("\n")))
            for column in zip(*lines, strict=True)]


def _least(lines: Rows, left: Collection[int]) -> list[int]:
    """The width that each column needs: of text its longest word, of figures the longest figure."""
    words = _natural([[c.replace(" ", "\n") if i in left else c for i, c in enumerate(line)] for line in lines])
    return [min(w, WORD) if i in left else w for i, w in enumerate(words)]


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def _terminal_width() -> int:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
