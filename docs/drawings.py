"""The drawings of the concept pages, as SVG: boxes in rows, arrows between them, from the short texts in DRAWINGS."""

from __future__ import annotations

from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 190, 62, 36, 46, 10
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1d2b2a}.small{font-size:11px;fill:#4b5c5a}"
    "rect{fill:#e6f3f1;stroke:#0f766e;stroke-width:1.4}path{stroke:#0f766e;stroke-width:1.6;fill:none}.paper{fill:#fff;stroke:none}"
)


@dataclass(frozen=True)
class Drawing:
    """`rows`: rows of boxes, each "key: title / line below"; "-" leaves a place free. `arrows`: "a b, b c" by keys."""

    title: str
    rows: tuple[tuple[str, ...], ...]
    arrows: str


DRAWINGS = {
    "episodes-and-shards": Drawing(
        "From labelled photos to episodes",
        (
            (
                "src: labelled photos / folder or bucket",
                "tab: image table / Parquet, photos once",
                "blk: class blocks / up to 128 annotations",
            ),
            ("-", "lst: episode lists / fixed, with a hash", "str: stream / endless, resumable"),
            ("-", "evl: evaluation / every method, same list", "trn: training / clips of K + J photos"),
        ),
        "src tab, tab blk, tab lst, blk str, lst evl, str trn",
    ),
    "method-contract": Drawing(
        "What a method implements",
        (
            ("sup: supports / K photos and marks", "enc: encode / once a photo", "mem: memorise / once a support set"),
            (
                "qry: queries / any number of photos",
                "enq: encode / once a photo",
                "seg: segment / any pairs, one batch",
            ),
            ("-", "-", "msk: masks, scores / of each pair"),
        ),
        "sup enc, enc mem, qry enq, enq seg, mem seg, seg msk",
    ),
    "sweep": Drawing(
        "A sweep",
        (
            (
                "rec: recipe / methods, folds, seeds",
                "cel: matrix / one table a cell",
                "pln: plan / runs that are not done",
            ),
            (
                "run: runs / Ray Train, checkpoints",
                "tst: test episodes / the fold's list",
                "res: result.json / a run's score",
            ),
            (
                "brd: leaderboard / intervals, a winner",
                "ref: refit / on all classes",
                "cha: champion / bundle and alias",
            ),
        ),
        "rec cel, cel pln, pln run, run tst, tst res, res brd, brd ref, ref cha",
    ),
    "labelling-job": Drawing(
        "The life of a labelling job",
        (
            (
                "lst: list of photos / fixed, hashed",
                "chk: chunks / labelled in any order",
                "prt: parts / one file a chunk",
            ),
            ("-", "fai: failures / a row a photo", "out: labels / COCO and other formats"),
            (
                "new: supports / corrected masks",
                "dec: decisions / accept, reject, correct",
                "rev: review / most doubtful first",
            ),
        ),
        "lst chk, chk prt, chk fai, prt out, out rev, rev dec, dec new",
    ),
    "calibration": Drawing(
        "From a score to a probability",
        (
            (
                "set: support sets / of trained classes",
                "tgt: targets / with and without the class",
                "obs: observations / score, look, IoU",
            ),
            (
                "lab: a label / score of a new class",
                "cal: calibrator / kept in the bundle",
                "prs: presence, quality / probabilities",
            ),
            ("-", "-", "sta: accepted, review, empty / by two thresholds"),
        ),
        "set tgt, tgt obs, obs cal, lab cal, cal prs, prs sta",
    ),
}


def pictures() -> dict[str, str]:
    """Name of each picture's file below docs/, and its SVG."""
    return {f"images/{name}.svg": draw(drawing) for name, drawing in DRAWINGS.items()}


def draw(drawing: Drawing) -> str:
    """The drawing as SVG text. Raises `KeyError` for an arrow between boxes that are not there."""
    places, boxes = {}, []
    for y, row in enumerate(drawing.rows):
        for x, text in enumerate(row):
            if text != "-":
                key, _, words = text.partition(": ")
                places[key] = (MARGIN + x * (WIDTH + GAP_X), MARGIN + y * (HEIGHT + GAP_Y))
                boxes.append(_box(*places[key], *words.split(" / ")))
    arrows = [_arrow(places[a], places[b]) for a, b in (pair.split() for pair in drawing.arrows.split(", "))]
    columns = max(len(row) for row in drawing.rows)
    w, h = 2 * MARGIN + columns * (WIDTH + GAP_X) - GAP_X, 2 * MARGIN + len(drawing.rows) * (HEIGHT + GAP_Y) - GAP_Y
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" width="{w}" role="img"><title>'
        f'{escape(drawing.title)}</title><style>{STYLE}</style><defs><marker id="tip" viewBox="0 0 8 8" '
        'refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" style="fill:#0f766e;stroke:none"/>'
        f'</marker></defs><rect class="paper" width="{w}" height="{h}"/>{"".join(boxes)}{"".join(arrows)}</svg>'
    )


def _box(x: int, y: int, title: str, below: str) -> str:
    middle = x + WIDTH / 2
    return (
        f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6"/><text x="{middle}" y="{y + 27}" '
        f'text-anchor="middle">{escape(title)}</text><text class="small" x="{middle}" y="{y + 46}" '
        f'text-anchor="middle">'
        f"{escape(below)}</text>"
    )


def _arrow(a: tuple[int, int], b: tuple[int, int]) -> str:
    """From box to box: straight beside or below it, else through the gap between two rows."""
    (ax, ay), (bx, by) = a, b
    if ay == by:
        right = ax < bx
        start, end = (ax + WIDTH if right else ax), (bx if right else bx + WIDTH)
        return f'<path marker-end="url(#tip)" d="M{start},{ay + HEIGHT / 2} L{end},{by + HEIGHT / 2}"/>'
    down = by > ay
    y0, y1 = (ay + HEIGHT, by) if down else (ay, by + HEIGHT)
    turn = (y0 + y1) / 2
    return (
        f'<path marker-end="url(#tip)" d="M{ax + WIDTH / 2},{y0} L{ax + WIDTH / 2},{turn} L{bx + WIDTH / 2},{turn} '
        f'L{bx + WIDTH / 2},{y1}"/>'
    )
