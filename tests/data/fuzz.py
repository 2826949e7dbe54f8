"""Valid annotations of every format, mutated: each is read, or told in rows and one line, and nothing else happens.

    python -m tests.data.fuzz LAYOUT,LAYOUT EXAMPLES SECONDS SEED FOLDER

runs in a process of its own, because what goes wrong may end it: a crash, a hang, memory that grows. The last layout's
folder then still has the mutated files, and `mutations.txt` what was done to them.
"""

from __future__ import annotations

import copy
import faulthandler
import io
import json
import pickle
import resource
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from hypothesis import strategies as st
from PIL import Image

from fss_models.errors import FssError
from pipelines.config.data import DataConfig, SourceConfig, SplitConfig
from pipelines.data.classes import choose_classes
from pipelines.data.failures import told
from pipelines.data.ledger import versions_of
from pipelines.data.open import open_source
from pipelines.data.parts import PartBuilder
from tests.data.exports import LAYOUTS, objects

SECONDS = 30  # that an example may take on a busy machine; each has eight photos of 64 x 48
GROWTH = 300_000  # kB by which an example may grow the process
LIMIT = 8 << 30  # bytes of address space, so that a runaway does not take the machine with it

HOSTILE = st.one_of(
    st.sampled_from([None, True, "", " ", "\0", "\ud800", "a\nb", "../x", "x" * 300, [], {}, [[]], [{}], 0, -1, 0.5,
                     2**31, 2**63, 10**400, -(2**64), 1e308, float("nan"), float("inf"), "NaN", "-inf", "1e999",
                     "9" * 5000, [1] * 50, [0, 0, 0, 0, 1e9, 1e9], {"size": [2**31, 2**31], "counts": [2**62]}, "b'0'",
                     "null"]),
    st.integers(), st.floats(), st.text(max_size=12), st.lists(st.integers(-9, 99), max_size=9))
MUTATION = st.tuples(st.integers(0, 2**30), st.integers(0, 2**30), st.sampled_from(range(8)), HOSTILE)
Mutations = list[tuple[int, int, int, Any]]


# ---- mutations ----------------------------------------------------------------------------------------------------

def mutated_bytes(data: bytes, mutations: Mutations) -> bytes:
    """Bytes that are flipped, cut, repeated or written over."""
    for place, other, kind, value in mutations:
        at, to = sorted((place % (len(data) + 1), other % (len(data) + 1)))
        to = min(to, at + 1 + other % 64)
        text = str(value).encode("utf-8", "surrogatepass")[:6000]
        data = (data[:at] + bytes([other % 256]) + data[at + 1 :], data[:at] + data[to:], data[:to] + data[at:],
                data[:at], data[:at] + text + data[to:], data[:at] + b"\xff" + data[at:], data[at:],
                data[:at] + data[at:to][::-1] + data[to:])[kind]
    return data


def nodes(tree: Any) -> Iterator[tuple[Any, Any]]:
    """(list or dict, index or key) of every node below `tree`."""
    for key, value in (tree.items() if isinstance(tree, dict) else enumerate(tree)):
        yield tree, key
        if isinstance(value, dict | list):
            yield from nodes(value)


def mutated_tree(tree: Any, mutations: Mutations) -> Any:
    """A tree of lists and dicts with nodes replaced, removed, repeated, exchanged, wrapped or renamed."""
    root = [tree]
    for place, other, kind, value in copy.deepcopy(mutations):  # hypothesis gives the same lists again
        found = list(nodes(root))
        holder, key = found[place % len(found)] if found else (root, 0)
        twin, at = found[other % len(found)] if found else (root, 0)
        if kind == 0 and holder is not root:
            del holder[key]
        elif kind == 1:
            holder[key] = pickle.loads(pickle.dumps(twin[at]))
        elif kind == 2:
            holder[key] = [holder[key]]
        elif kind == 3 and isinstance(holder[key], list):
            holder[key] = holder[key] * 2
        elif kind == 4 and isinstance(holder, dict):
            holder[str(value)[:50]] = holder.pop(key)
        elif kind == 5:
            holder[key] = str(holder[key])
        else:
            holder[key] = value
    return root[0] if root else None


def mutated_json(data: bytes, mutations: Mutations) -> bytes:
    return json.dumps(mutated_tree(json.loads(data), mutations)).encode()


def mutated_yaml(data: bytes, mutations: Mutations) -> bytes:
    return yaml.dump(mutated_tree(yaml.safe_load(data), mutations), allow_unicode=True).encode("utf-8", "replace")


def mutated_lines(data: bytes, mutations: Mutations) -> bytes:
    tree = mutated_tree([line.split() for line in data.decode().splitlines()], mutations)
    rows = (r if isinstance(r, list) else [r] for r in (tree if isinstance(tree, list) else [tree]))
    return "\n".join(" ".join(map(str, row)) for row in rows).encode("utf-8", "replace")


def mutated_xml(data: bytes, mutations: Mutations) -> bytes:
    """Elements and attributes that are replaced, removed, repeated or renamed."""
    root = ET.fromstring(data)
    for place, other, kind, value in mutations:
        elements = list(root.iter())
        element, twin = elements[place % len(elements)], elements[other % len(elements)]
        text = "".join(c for c in str(value)[:6000] if c.isprintable() and not "\ud800" <= c <= "\udfff")
        keys = sorted(element.attrib)
        if kind == 0 and keys:
            del element.attrib[keys[other % len(keys)]]
        elif kind == 1 and len(list(twin.iter())) < 200:
            element.append(pickle.loads(pickle.dumps(twin)))
        elif kind == 2 and len(element):
            element.remove(element[other % len(element)])
        elif kind == 3:
            element.tag = ("track", "image", "mask", "polygon", "box", "label", "x")[other % 7]
        elif kind == 4:
            element.set(("frame", "outside", "subset", "task_id", "name", "width")[other % 6], text)
        elif keys:
            element.set(keys[other % len(keys)], text)
        else:
            element.text = text
    return ET.tostring(root)


def mutated_picture(data: bytes, mutations: Mutations) -> bytes:
    """A picture of another mode, size or content, in another format."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    for place, other, kind, _ in mutations:
        pixels = np.random.default_rng(place).integers(0, (2, 4, 256)[other % 3], (image.height, image.width, 4))
        grey = pixels[..., 0]
        if kind < 2:
            image = image.convert("RGB").convert(("1", "L", "LA", "P", "RGB", "RGBA", "I", "F")[other % 8])
        elif kind < 4:
            image = image.resize((1 + place % 200, 1 + other % 200)) if kind == 2 else image.rotate(90, expand=True)
        else:
            image = Image.fromarray((pixels.astype(np.uint8), grey.astype(np.int32) * (other % 300),
                                     grey.astype(np.float32) / (1 + other % 3), grey.astype(np.uint8))[kind - 4])
    out = io.BytesIO()
    kinds = ("PNG", "TIFF", "BMP", "GIF", "JPEG", "WEBP")
    for kind_ in (kinds[mutations[0][0] % len(kinds)], "TIFF"):
        try:
            image.save(out, kind_)
            return out.getvalue()
        except (OSError, KeyError, ValueError):
            out = io.BytesIO()
    return data


def mutated_parquet(data: bytes, mutations: Mutations) -> bytes:
    """Cells of the same type with other values, columns that are removed, renamed or of another type."""
    table = pq.read_table(io.BytesIO(data))
    for place, other, kind, value in mutations:
        column = place % table.num_columns
        name, kind_ = table.schema.names[column], table.schema.types[column]
        rows = table[name].to_pylist()
        if kind == 0 and table.num_columns > 1:
            table = table.drop_columns([name])
        elif kind == 1:
            table = table.rename_columns([f"{n}{'x' * (n == name)}" for n in table.schema.names])
        elif kind == 2:
            table = table.slice(other % (len(table) + 1))
        else:
            changed = mutated_tree(rows, [(place, other, kind, value)])
            for new_type in (kind_, None):
                try:
                    wider = table.set_column(column, name, pa.array(changed, new_type))
                    pq.write_table(wider, io.BytesIO())  # not all types can be written
                    table = wider
                    break
                except (pa.ArrowException, ValueError, TypeError, OverflowError):
                    continue
    out = io.BytesIO()
    pq.write_table(table, out, row_group_size=3)
    return out.getvalue()


BY_SUFFIX: dict[str, Callable[[bytes, Mutations], bytes]] = {
    ".json": mutated_json, ".xml": mutated_xml, ".txt": mutated_lines, ".yaml": mutated_yaml, ".png": mutated_picture,
    ".parquet": mutated_parquet, ".jpg": mutated_bytes}


# ---- one example --------------------------------------------------------------------------------------------------

def build(kind: str, root: Path, out: Path) -> str:
    """A build of all photos as `build_shards` does it, without Ray. "read", or the line that a person would see."""
    cfg = DataConfig(source=SourceConfig(format=kind, root=str(root)), min_images=1, min_area=0,  # type: ignore[arg-type]
                     split=SplitConfig(test_fraction=0.5))
    try:
        source = open_source(cfg.source)
    except FssError as error:
        return str(error)
    entries = [(item, "train") for item in source.items]
    versions_of(entries, source, cfg)
    builder = pickle.loads(pickle.dumps(PartBuilder(source=source, cfg=cfg, out=str(out))))
    try:
        index = pq.read_table(io.BytesIO(builder((0, entries))[1]))
    except FssError as error:
        return str(error)
    finally:
        failures = pq.read_table(out / "build/failures-00000.parquet") if (out / "images").exists() else None
        for path in sorted(out.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    choose_classes(source.classes, index.to_pylist(), cfg, source.fold_table)
    rows = [*(failures.to_pylist() if failures else []), *(f.__dict__ for f in source.failures)]
    wrong = [r["reason"] for r in rows if "\n" in r["reason"] or len(r["reason"]) > 1000]
    assert not wrong, f"a reason is not one line: {wrong[0][:300]!r}"
    told(rows)
    json.dumps(source.classes).encode()
    return "read"


def targets(root: Path) -> list[Path]:
    """The files that are mutated: annotations of all kinds, and one photo."""
    found = sorted(p for p in root.rglob("*") if p.is_file() and p.suffix in BY_SUFFIX)
    photos = [p for p in found if p.suffix == ".jpg"]
    return [p for p in found if p.suffix != ".jpg"][:12] + photos[:1]


def extras(layout: str, root: Path) -> None:
    """Files that not all exports of a format have."""
    if layout == "voc":
        (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\nbottle:5,250,35::\n"
                                           "car:7,248,49::\n")
    if layout == "cvat polygons":
        points = ";".join(f"{x:.2f},{y:.2f}" for x, y in objects(0)[0].outline)
        shapes = "".join(f'<polygon frame="{i}" keyframe="1" outside="{i // 2}" points="{points}"/>' for i in range(3))
        path = root / "annotations.xml"
        text = path.read_text().replace("</annotations>", f'<track id="0" label="car">{shapes}</track></annotations>')
        path.write_text(text.replace("<labels>", "<original_size><width>64</width><height>48</height></original_size>"
                                     "<labels>", 1))
        (root / "images/frame_000001.jpg").write_bytes(next((root / "images").glob("*.jpg")).read_bytes())


def run(layout: str, examples: int, seconds: float, seed: int, folder: Path) -> dict[str, int]:
    """Run examples until there are so many or the time is over. Returns counts of outcomes."""
    kind, write, _ = LAYOUTS[layout]
    root, out, counts, end = folder / "input", folder / "out", {"read": 0, "refused": 0}, time.monotonic() + seconds
    write(root)
    extras(layout, root)
    assert build(kind, root, out) == "read"
    files = {path: path.read_bytes() for path in targets(root)}

    def example(file: int, bytewise: bool, mutations: Mutations) -> None:
        if time.monotonic() > end:
            return
        path = list(files)[file % len(files)]
        data = (mutated_bytes if bytewise else BY_SUFFIX[path.suffix])(files[path], mutations)
        (folder / "mutations.txt").write_bytes(f"{path} {bytewise} {mutations!r}".encode("utf-8", "replace"))
        path.write_bytes(data)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        line = build(kind, root, out)
        faulthandler.cancel_dump_traceback_later()
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < GROWTH, f"the process grew by {grown:,} kB"
        assert "\n" not in line, f"not one line: {line[:300]!r}"
        assert len(line) < 2000, f"a long line: {line[:300]!r}"
        counts["read" if line == "read" else "refused"] += 1
        path.write_bytes(files[path])

    given = hypothesis.given(st.integers(0, 99), st.booleans(), st.lists(MUTATION, min_size=1, max_size=3))
    settings = hypothesis.settings(max_examples=min(examples, 500), deadline=None, database=None,
                                   suppress_health_check=list(hypothesis.HealthCheck), print_blob=False)
    while sum(counts.values()) < examples and time.monotonic() < end:
        hypothesis.seed(seed)(settings(given(example)))()
        seed += 1
    return counts


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
    layouts_, examples_, seconds_, seed_, folder_ = sys.argv[1:]
    for layout_ in layouts_.split(","):
        place_ = Path(folder_, layout_)
        place_.mkdir(parents=True)
        print(json.dumps(run(layout_, int(examples_), float(seconds_), int(seed_), place_)), flush=True)
