"""A table as text for a terminal, as Markdown and as a page.

Each row shows our figure, its interval, the published figure and their difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipelines.base.storage import Store, join
from pipelines.base.text_table import text_table
from pipelines.base.version import code_version
from pipelines.pages.template import page_template
from pipelines.papers.tables.cells import TableCell
from pipelines.papers.tables.config import MEASURES
from pipelines.papers.tables.outcome import TableFigure, TableOutcome, document, folds_of

NONE = "–"


@dataclass(frozen=True, kw_only=True)
class TableBlock:
    """A part of the table that fits side by side; each line is (row, kind of figure, cells)."""

    title: str
    head: list[str]
    lines: list[tuple[str, str, list[str]]]


Slot = tuple[str, int | None]  # a column's key, and a fold or None for the mean


def blocks(found: TableOutcome) -> list[TableBlock]:
    """One block for each column that shows its folds, and one block for all other columns."""
    columns = found.table.columns
    plain: list[Slot] = [(k, None) for k, c in columns.items() if not c.folds]
    made = []
    for key, column in columns.items():
        if column.folds:
            slots: list[Slot] = [(key, f) for f in folds_of(column)]
            head = ["mean" if f is None else f"fold {f}" for _, f in slots]
            made.append(_block(found, f"{column.title}; {MEASURES[column.measure]}", head, slots))
    if plain:
        measures = {columns[k].measure for k, _ in plain}
        one = f"; {MEASURES[measures.pop()]}" if len(measures) == 1 else ""
        head = [columns[k].title + ("" if one else f", {MEASURES[columns[k].measure]}") for k, _ in plain]
        made.append(_block(found, f"{found.table.title}{one}", head, plain))
    return made


def _block(found: TableOutcome, title: str, head: list[str], slots: Sequence[Slot]) -> TableBlock:
    lines: list[tuple[str, str, list[str]]] = []
    for row in found.table.rows:
        figures = [found.find_figure(row.name, k, f) for k, f in slots]
        if any(figures):
            lines += _lines(found, row.name, figures)
    for rival in found.table.rivals:
        figures = [found.find_figure(rival.name, k, f) for k, f in slots]
        if any(f and f.published is not None for f in figures):
            lines.append((f"{rival.name} [{_sources(found).index(rival.source) + 1}]", "published",
                          _texts(figures, lambda f: _number(f.published))))
    return TableBlock(title=title, head=head, lines=lines)


def _lines(found: TableOutcome, name: str, figures: Sequence[TableFigure | None]) -> list[tuple[str, str, list[str]]]:
    level = f"{found.table.confidence:.0%} interval"
    kinds: list[tuple[str, Callable[[TableFigure], str]]] = [
        ("ours", lambda f: _number(f.ours) + (" (fewer folds)" if f.fewer_folds and f.ours is not None else "")),
        (level, lambda f: NONE if f.low is None or f.high is None else f"{f.low:.1f} to {f.high:.1f}"),
        ("published", lambda f: _number(f.published)),
        ("difference", lambda f: _signed(f.difference) + ("*" if f.published_outside else "")),
        (f"difference to {found.table.reference}", lambda f: _versus(f)),
    ]
    label = name + (" †" if name in found.remarks else "")
    made: list[tuple[str, str, list[str]]] = []
    for what, format_figure in kinds:
        cells = _texts(figures, format_figure)
        if what == "published" or any(c not in ("", NONE) for c in cells):
            made.append((label if not made else "", what, cells))
    return made


def _texts(figures: Sequence[TableFigure | None], format_figure: Callable[[TableFigure], str]) -> list[str]:
    return ["" if f is None else format_figure(f) for f in figures]


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f}" if abs(value) >= 1 else f"{value:.3g}"


def _signed(value: float | None) -> str:
    return NONE if value is None else f"{round(value, 1) + 0.0:+.1f}"


def _versus(figure: TableFigure) -> str:
    if figure.versus_reference is None:
        return NONE
    gain, low, high = figure.versus_reference
    return f"{_signed(gain)} ({_signed(low)} to {_signed(high)})"


def _sources(found: TableOutcome) -> list[str]:
    return list(dict.fromkeys(r.source for r in found.table.rivals))


def remarks(found: TableOutcome) -> list[str]:
    """The lines below the table: sources, meaning of the marks, and what a reader needs to know about our runs."""
    table, lines = found.table, [f"{found.table.paper}. Published figures of the rows: {found.table.source}."]
    lines += [f"[{i}] {source}." for i, source in enumerate(_sources(found), start=1)]
    if found.finished:
        lines.append("Intervals resample classes, episodes and seeds. * The published figure is outside our interval.")
    else:
        lines.append("No cell of this table was run here yet.")
    lines += [f"† {name}: {'; '.join(remarks)}." for name, remarks in found.remarks.items()]
    if found.changes:
        lines.append(f"Our runs changed {', '.join(found.changes)}, so they do not follow the published protocol.")
    if any(f.published is None for f in found.figures):
        lines.append(f"{NONE} under published: no published figure is known.")
    return lines + table.notes


def render_text(found: TableOutcome) -> str:
    """The table as text for a terminal."""
    parts = [found.table.title]
    for block in blocks(found):
        rows = [[name, what, *cells] for name, what, cells in block.lines]
        parts.append(f"{block.title}\n{text_table(rows, head=['', '', *block.head], left=(0, 1))}")
    return "\n\n".join([*parts, "\n".join(remarks(found))])


def render_markdown(found: TableOutcome) -> str:
    """The table as Markdown."""
    parts = [f"# {found.table.title}"]
    for block in blocks(found):
        head = ["", "", *block.head]
        rows = [f"| {' | '.join(_escaped(c) for c in (name, what, *cells))} |" for name, what, cells in block.lines]
        parts.append("\n".join([f"## {block.title}", "", f"| {' | '.join(map(_escaped, head))} |",
                                f"|{'---|' * 2}{'---:|' * len(block.head)}", *rows]))
    return "\n\n".join([*parts, "\n".join(f"- {_escaped(line)}" for line in remarks(found))]) + "\n"


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("*", "\\*")


def render_page(found: TableOutcome) -> str:
    """The table as one self-contained HTML page."""
    template = page_template("pipelines.papers.tables", "table.html")
    return template.render(title=found.table.title, blocks=blocks(found), remarks=remarks(found),
                           code=code_version())


def write_table(found: TableOutcome, cells: Sequence[TableCell], out: str) -> str:
    """Write `<out>/tables/<name>.html`, `.md` and `.json`. Returns the page's path or URL."""
    store = Store(join(out, "tables"))
    store.write_json(f"{found.name}.json", document(found, cells))
    store.write_bytes(f"{found.name}.md", render_markdown(found).encode())
    store.write_bytes(f"{found.name}.html", render_page(found).encode())
    return store.path(f"{found.name}.html")
