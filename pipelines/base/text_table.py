"""Tables as text, for a terminal, a pipe or a file."""

from __future__ import annotations

import io
import shutil
import sys
import textwrap
from collections.abc import Collection, Sequence

GAP = 2  # spaces between columns
TEXT = 12  # characters that a column of text keeps in a narrow terminal


def text_table(rows: Sequence[Sequence[str]], *, head: Sequence[str] = (), left: Collection[int] = (0,),
               rule: bool = True, width: int | None = None) -> str:
    """The rows, and a `head` with a `rule` below it, in aligned columns.

    The columns numbered in `left` hold text: they are aligned left, and folded where the table is wider than `width`
    (None: the terminal, or no limit where the output is none). The others hold figures: aligned right, never broken.
    """
    from rich.box import Box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table

    columns = range(len(head) or max(map(len, rows), default=0))
    longest = [max((cell_len(row[i]) for row in rows), default=0) for i in columns]
    heads = [*head] or [""] * len(columns)
    whole = sum(max(a, cell_len(b)) + GAP for a, b in zip(longest, heads, strict=True)) - GAP
    room = min(whole, _terminal_width(whole) if width is None else width)
    if room < whole:
        heads = [textwrap.fill(h, max(n, TEXT // 2), break_long_words=False)
                 for n, h in zip(longest, heads, strict=True)]
    widest = [max(n, *map(cell_len, h.split("\n"))) for n, h in zip(longest, heads, strict=True)]
    least = sum((min(w, TEXT) if i in left else w) + GAP for i, w in enumerate(widest)) - GAP
    ruled = Box("    \n    \n -- \n" + 5 * "    \n") if rule and head else None  # it takes one space of the gap
    table = Table(box=ruled, show_edge=False, pad_edge=False, padding=(0, GAP - bool(ruled), 0, 0),
                  show_header=bool(head), header_style="")
    for i in columns:
        table.add_column(heads[i], justify="left" if i in left else "right", no_wrap=i not in left, overflow="fold")
    for row in rows:
        table.add_row(*row)
    out = io.StringIO()
    console = Console(file=out, width=max(room, least), height=25, color_system=None, markup=False, emoji=False,
                      highlight=False)
    console.print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _terminal_width(otherwise: int) -> int:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else otherwise
