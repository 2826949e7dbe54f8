"""The classes of a VOC folder: VOC's own twenty, or those of a `labelmap.txt` beside the masks (CVAT, Datumaro).

A line of a label map is `name:red,green,blue:parts:actions`. The name `background` (else the first black entry) is no
class. Masks have the colours of the map, as RGB or in a palette, or the numbers of its lines, from 0 on.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

from fss_models.errors import BadImage, FssError
from fss_models.mask_files import VOID_COLOUR, open_mask
from pipelines.data.sources.text import class_name, merge_names, plain_text

VOID = 255
BACKGROUND = -1  # as a class id
_UNKNOWN = -2


class LabelMap(NamedTuple):
    """classes: names; ids: the class id of each line (`BACKGROUND`: none); colours: red, green, blue of each line, None
    without one; merged: what was merged, in words."""

    classes: list[str]
    ids: list[int]
    colours: list[tuple[int, int, int] | None]
    merged: list[str]


class ClassLabels(NamedTuple):
    """ids: [H, W] int32 of class ids, `BACKGROUND` where no class is; void: [H, W] bool; problems: in words."""

    ids: np.ndarray
    void: np.ndarray
    problems: list[str]


def read_label_map(data: bytes, where: str) -> LabelMap:
    """Parse `labelmap.txt`. Raises `FssError` if it is not one."""
    hint = "write lines such as cup:250,50,83:: (name:red,green,blue:parts:actions)"
    try:
        lines = [line.strip() for line in plain_text(data).splitlines()]
    except BadImage as error:
        raise FssError(error.reason, where=where) from error
    names: list[str] = []
    colours: list[tuple[int, int, int] | None] = []
    for line in (text for text in lines if text and not text.startswith("#")):
        fields = line.rsplit(":", 3) if line.count(":") >= 3 else [*line.split(":"), "", ""]
        names.append(class_name(fields[0]))
        colours.append(_colour(fields[1], line, where, hint))
    ground = next((i for i, n in enumerate(names) if n.lower() == "background"), None)
    if ground is None:
        ground = next((i for i, c in enumerate(colours) if c == (0, 0, 0)), None)
    classes, of, merged = merge_names(n for i, n in enumerate(names) if i != ground)
    if not classes or "" in classes:
        raise FssError("the file names no class" if not classes else "a class has no name", where=where, hint=hint)
    own = iter(of)
    ids = [BACKGROUND if i == ground else next(own) for i in range(len(names))]
    twice = next((c for i, c in enumerate(colours) if c and any(c == o and ids[i] != ids[j]
                                                                  for j, o in enumerate(colours[:i]))), None)
    if twice:
        raise FssError(f"two classes have the colour {','.join(map(str, twice))}", where=where)
    return LabelMap(classes, ids, colours, merged)


def _colour(text: str, line: str, where: str, hint: str) -> tuple[int, int, int] | None:
    if not text.strip():
        return None
    parts = [p.strip() for p in text.split(",")]
    if len(parts) != 3 or not all(p.isdecimal() and len(p) < 4 and int(p) < 256 for p in parts):
        raise FssError(f"no colour in the line {line[:60]!r}", where=where, hint=hint)
    return int(parts[0]), int(parts[1]), int(parts[2])


def read_class_labels(data: bytes, labels: LabelMap) -> ClassLabels:
    """The classes of a mask file, by its colours if the map has all of them, else by its numbers. Raises `BadImage`."""
    image = open_mask(data)
    if image.mode in ("P", "L", "1") or image.mode.startswith("I"):
        values = np.array(image).astype(np.int64)
        colours = _shades(image)
        void = (values == VOID) & (len(labels.ids) <= VOID) & (colours.get(VOID) not in labels.colours)
        if {colours.get(v) for v in np.unique(values[~void]).tolist()} <= {*labels.colours, VOID_COLOUR} - {None}:
            return _by_colour(np.asarray(image.convert("RGB")), labels, void)
        return _looked_up(values, dict(enumerate(labels.ids)), void, "mask value {}")
    pixels = np.asarray(image.convert("RGB"))
    return _by_colour(pixels, labels, np.zeros(pixels.shape[:2], dtype=bool))


def _shades(image: Image.Image) -> dict[int, tuple[int, ...]]:
    """Value -> red, green, blue of an image with a palette or up to 256 greys."""
    if image.mode != "P":
        return {} if image.mode.startswith("I") else {i: (i, i, i) for i in range(256)}
    flat = image.getpalette() or []
    return {i: tuple(flat[3 * i : 3 * i + 3]) for i in range(len(flat) // 3)}


def _packed(colour: tuple[int, ...]) -> int:
    return colour[0] << 16 | colour[1] << 8 | colour[2]


def _by_colour(pixels: np.ndarray, labels: LabelMap, void: np.ndarray) -> ClassLabels:
    wide = pixels.astype(np.int64)
    values = wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]
    table = {_packed(c): i for c, i in zip(labels.colours, labels.ids, strict=True) if c}
    table.setdefault(0, BACKGROUND)
    if _packed(VOID_COLOUR) not in table:
        void = void | (values == _packed(VOID_COLOUR))
    return _looked_up(values, table, void, "mask colour #{:06x}")


def _looked_up(values: np.ndarray, table: dict[int, int], void: np.ndarray, words: str) -> ClassLabels:
    """Unknown values are background, and problems."""
    distinct, places = np.unique(values, return_inverse=True)
    of = np.array([table.get(int(v), _UNKNOWN) for v in distinct], dtype=np.int32)
    ids = np.where(void, BACKGROUND, of[places.reshape(values.shape)]).astype(np.int32)
    strange, counts = np.unique(values[ids == _UNKNOWN], return_counts=True)
    problems = [f"{words.format(int(v))} of {n} pixels is not in labelmap.txt"
                for v, n in zip(strange, counts, strict=True)]
    ids[ids == _UNKNOWN] = BACKGROUND
    return ClassLabels(ids, void, problems)
