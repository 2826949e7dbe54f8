"""Do two versions of the code write the same bytes? Drives `fss` alone, on generated data, at the size `debug`.

    python tests/compare_outputs.py make FSS OUT         the commands below OUT; stopped and run again: those left
    python tests/compare_outputs.py collect OUT          outputs.json again, of what is there
    python tests/compare_outputs.py compare A B          two outputs.json; status 1 if anything differs
    python tests/compare_outputs.py reopen FSS OLD NEW   this version on NEW, a copy of what another one wrote to OLD

The plan, compare_outputs.yaml, has the commands and names what is left out, and why: all other files below OUT count,
JSON value by value. FSS is the command of the version to be run, such as `.venv/bin/fss`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml
from PIL import Image, ImageDraw

PLAN = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())  # the commands, and what is not compared


class Fss:
    """The command below a folder: what it prints goes to `stdout/`, what it says to `logs/`."""

    def __init__(self, binary: str, out: Path, *, again: bool = False) -> None:
        self.binary, self.out, self.again = str(Path(binary).absolute()), out, again
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "FSS_", "AWS_", "MLFLOW_"))}
        self.env = clean | {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb",
                            "FSS_CACHE": str(out / "cache"), "RAY_worker_niceness": "0"}

    def words(self, line: str) -> list[str]:
        """A line of the plan as the command's words."""
        found: list[str] = []
        for word in shlex.split(line):
            place = "one/runs/*" if word == "@one" else f"sweep/runs/shapes-{word[1:-1]}-debug-f{word[-1]}-*"
            found += (shlex.split(PLAN["sets"][word]) if word in PLAN["sets"] else
                      [next(self.out.glob(f"{place}/bundle")).relative_to(self.out).as_posix()] if word[0] == "@" else
                      [word])
        return found

    def __call__(self, name: str, line: str) -> str:
        """Run a line; what it printed, of a mistake what it said. Another status than expected ends the script."""
        if (answer := self.out / "stdout" / name).exists() and not self.again:
            return answer.read_text()
        words, began, wanted = self.words(line), time.monotonic(), 2 if name.startswith("mistake") else 0
        for _ in range(9):
            done = subprocess.run([self.binary, *words], cwd=self.out, env=self.env, capture_output=True, text=True,
                                  check=False)
            if done.returncode != -6 or "terminate called without an active exception" not in done.stderr:
                break  # else a thread lived on when the interpreter had ended, all work being done
            print(f"  {name}: done, but aborted at exit; once more", flush=True)
        said = "".join(x for x in done.stderr.splitlines(keepends=True) if x.startswith("error: "))
        printed = said if wanted else done.stdout
        (self.out / "logs" / name).write_text(done.stderr)
        if done.returncode != wanted:
            sys.exit(f"{name}: status {done.returncode}, not {wanted}\n{done.stderr[-3000:]}")
        answer.write_text(printed)
        print(f"  {name}: {time.monotonic() - began:.0f} s", flush=True)
        return printed

    def help(self, command: str = "") -> None:
        """The help of a command and of all that are below it."""
        listed = self(f"help{command.replace(' ', '_')}.txt", f"{command} --help")
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(self.help, [f"{command} {n}" for n in re.findall(r"^│ ([a-z][a-z-]+) ", listed, re.M)]))

    def killed_midway(self) -> None:
        """A workspace whose only run, one of the sweep's, was killed after its first checkpoint."""
        for _ in range(5):
            shutil.rmtree(self.out / "interrupted", ignore_errors=True)
            process = subprocess.Popen([self.binary, *self.words(PLAN["killed"])], cwd=self.out, env=self.env,
                                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while process.poll() is None and not list(self.out.glob("interrupted/runs/*/checkpoint_*/about.json")):
                time.sleep(0.005)
            below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            for one in (process, *below):
                one.kill()
            process.wait()
            psutil.wait_procs(below, timeout=10)
            if not list(self.out.glob("interrupted/runs/*/bundle")):
                return
        sys.exit("the run that was to be killed was always faster")


def draw_inputs(out: Path) -> None:
    """Photos of a red ball on noise and supports for it, a file that is no photo, lists of classes."""
    given = out / "given"
    for folder in ("given/photos/more", "given/classes/ball", "given/classes/noise", "lists", "logs", "stdout"):
        (out / folder).mkdir(parents=True)
    for number in range(30):
        photo, mask = _ball(number)
        photo.save(given / "photos" / ("more" if number % 3 == 0 else ".") / f"{number:03d}.jpg", quality=92)
        if number == 4:
            mask.save(given / "right.png")
    (given / "photos" / "broken.jpg").write_bytes(b"\xff\xd8")
    supports = [{"image": f"s{n}.png", "mask": f"m{n}.png"} for n in range(3)]
    for number, support in enumerate(supports):
        photo, mask = _ball(1000 + number)
        photo.save(given / support["image"])
        mask.save(given / support["mask"])
        for name, picture in (("ball", mask), ("noise", mask.point(lambda v: 255 - v))):
            photo.save(given / "classes" / name / f"s{number}.png")
            picture.save(given / "classes" / name / f"s{number}_mask.png")
    (given / "supports.json").write_text(json.dumps({"class_name": "ball", "supports": supports}))
    for name, classes in (("trn", "ab"), ("val", "cd"), ("test", "efg")):
        (out / "lists" / f"{name}.txt").write_text("".join(f"{c}\n" for c in classes))


def _ball(seed: int) -> tuple[Image.Image, Image.Image]:
    rng = np.random.default_rng(seed)
    height, width, radius = (int(rng.integers(*ends)) for ends in ((90, 160), (90, 160), (18, 32)))
    y, x = int(rng.integers(35, height - 35)), int(rng.integers(35, width - 35))
    photo = Image.fromarray(rng.integers(40, 100, (height, width, 3), dtype=np.uint8))
    mask = Image.new("L", (width, height))
    for picture, value in ((photo, (220, 30, 30)), (mask, 255)):
        ImageDraw.Draw(picture).ellipse((x - radius, y - radius, x + radius, y + radius), fill=value)
    return photo, mask


def make(fss: Fss) -> None:
    """Every step that is left. Where all is done again, decisions are not: they are appended."""
    for line in PLAN["steps"]:
        name, _, rest = line.partition(" ")
        if name == "COPY":
            source, target = (fss.out / word for word in fss.words(rest))
            if not target.exists():
                shutil.copytree(source, target)
        elif not (fss.again and name == "review_decide.json"):
            fss(name, rest)


def collect(out: Path, *, dropped: tuple[str, ...] = ()) -> dict[str, Any]:
    """Name -> value or sha256 of all that counts below `out`, without the keys `dropped` too."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file() or p.is_symlink()):
        name = path.relative_to(out).as_posix()
        if path.is_symlink():
            found[name] = str(path.readlink()).replace(str(out), "OUT")
        elif not any(fnmatch(name, pattern) for pattern in PLAN["skipped"]):
            found.update(_described(name, path.read_bytes(), str(out), {*PLAN["dropped"], *dropped}))
    for database in sorted({*out.glob("*/mlflow.db")} - {out / "interrupted" / "mlflow.db"}):
        found.update((f"{database.parent.name}/tracking: {k}", v) for k, v in _tracking(database, str(out)))
    return found


def _described(name: str, data: bytes, root: str, dropped: set[str]) -> Iterator[tuple[str, Any]]:
    """The bytes, of texts without what the plan leaves out and the folder's path; of small JSON its values too."""
    if name.endswith((".json", ".html", ".txt", ".jsonl", ".xml", ".yaml")):
        text = reduce(lambda t, rule: re.sub(rule, "*", t), PLAN["replaced"], data.decode().replace(root, "OUT"))
        if name in PLAN["pages"]:
            text = re.sub(r"data:image/[^\"')]*|<svg.*?</svg>", "PICTURE", text, flags=re.S)
            text = re.sub(r"\d[\d.,]*(e[+-]\d+)?( (ms|s|min|h|kB|MB|GB)\b)?", "#", text)
        if name.endswith(".json") and text[:1] in ("[", "{"):
            keys = "|".join(map(re.escape, sorted(dropped)))
            text = re.sub(rf'"({keys})": ?("[^"]*"|[^,\s\]}}]+)', r'"\1": "*"', text)
            yield from _leaves(name, json.loads(text), dropped) if len(text) < 50_000 else ()
        data = text.encode()
    yield name, hashlib.sha256(data).hexdigest()


def _leaves(name: str, value: Any, dropped: set[str]) -> Iterator[tuple[str, Any]]:
    """Values of a JSON document by their place in it. Long ones and lists of plain values count as one."""
    if isinstance(value, dict) and value:
        for key in sorted(value.keys() - dropped):
            yield from _leaves(f"{name}: {key}", value[key], dropped)
    elif isinstance(value, list) and any(isinstance(v, dict | list) for v in value):
        for number, one in enumerate(value):
            yield from _leaves(f"{name}[{number}]", one, dropped)
    else:
        text = json.dumps(value)
        yield name, json.loads(text) if len(text) < 200 else hashlib.sha256(text.encode()).hexdigest()


def _tracking(database: Path, root: str) -> Iterator[tuple[str, Any]]:
    """What MLflow was told of all runs, and its registry, without ids and times."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as base:
        for table, step in (("metrics", "step"), ("params", "''"), ("tags", "''")):
            for run, key, at, value in base.execute(
                    f"SELECT r.name, m.key, {step}, m.value FROM {table} m JOIN runs r USING (run_uuid)"):
                plain = key.removeprefix("select/")  # of the runs that choose how long is trained
                if plain not in PLAN["dropped"] and not plain.startswith("system/"):
                    yield f"{run} {table} {key} {at}", str(value).replace(root, "OUT")
        yield from ((f"{name} status", status) for name, status in base.execute("SELECT name, status FROM runs"))
        for what, query in (("source", "SELECT name, version, source FROM model_versions"),
                            ("tag", "SELECT name, version || ' ' || key, value FROM model_version_tags"),
                            ("alias", "SELECT name, alias, version FROM registered_model_aliases")):
            for name, key, value in base.execute(query):
                if str(key).rpartition(" ")[2] not in PLAN["dropped"]:
                    plain = re.sub(r"\bm-[0-9a-f]{32}\b", "m-ID", str(value))  # MLflow draws the ids of its models
                    yield f"model {name} {what} {key}", plain.replace(root, "OUT")


def compare(one: dict[str, Any], two: dict[str, Any]) -> list[str]:
    """A line for each name that is missing or has another value."""
    pairs = ((name, *(f.get(name, "(missing)") for f in (one, two))) for name in sorted(one.keys() | two.keys()))
    return [f"{name}: {a!r} | {b!r}" for name, a, b in pairs if a != b]


def reopen(binary: str, old: Path, new: Path) -> bool:
    """Go on in a copy of `old` that stands in its place meanwhile, since jobs know paths, and ends as `new`."""
    kept = old.with_name(f"{old.name}.kept")
    old.rename(kept)
    try:
        shutil.copytree(kept, old, symlinks=True)
        return _gone_on(Fss(binary, old, again=True), old)
    finally:
        old.rename(new)
        kept.rename(old)


def _gone_on(fss: Fss, out: Path) -> bool:
    now, checks = tuple(PLAN["done_now"]), {}
    work = ("*/runs/*/*", "*/parts/*", "*/shards/*/blocks/*", "*/features/*")
    before, stamps = collect(out, dropped=now), _stamps(out, *work)
    make(fss)
    # What is read from a file instead of computed is printed with its keys in the file's order: values are compared.
    found = [x for x in compare(before, collect(out, dropped=now)) if not re.match(r"stdout/\w+.json: '\w{64}'", x)]
    checks["all commands again: every file as it was" + "".join(f"\n  {x}" for x in found)] = not found
    checks["all commands again: nothing was trained, labelled or built"] = stamps == _stamps(out, *work)
    for name in ("label_serve", "label_actors", "label_classes", "label_shipped"):
        said = json.loads((out / "stdout" / f"{name}.json").read_text())
        checks[f"{name}: a finished job has nothing left to do"] = said["labelled_now"] == 0
        line = next(x for x in PLAN["steps"] if x.startswith(f"{name}.json"))
        fss(f"fresh_{name}.json", line.partition(" ")[2].replace(f"--out {name}", f"--out fresh/{name}"))
        parts = _digests(out / name / "parts"), _digests(out / "fresh" / name / "parts")
        checks[f"{name}: labels with the old bundle are the old ones"] = len(parts[0]) > 0 and parts[0] == parts[1]
    steps = sorted(p.name for p in out.glob("interrupted/runs/*/checkpoint_*"))
    fss("finished.json", PLAN["killed"] + " --json")
    for run in sorted((out / "interrupted" / "runs").iterdir()):
        both = [[_digests(out / place / "runs" / run.name, name) for name in ("bundle/model.safetensors", "*.parquet")]
                for place in ("sweep", "interrupted")]
        checks[f"{run.name}, killed at {steps[0]} and finished here, is as if never killed"] = both[0] == both[1]
    fss("resumed.json", "sweep resume --out interrupted --json")
    print("\n".join(f"{'ok' if good else 'failed'}: {what}" for what, good in checks.items()))
    return all(checks.values())


def _stamps(root: Path, *patterns: str) -> dict[str, int]:
    """When each file was written."""
    names = {p for pattern in patterns for p in root.glob(pattern)} or {root}
    files = {f for p in names for f in ([p] if p.is_file() else p.rglob("*")) if f.is_file()}
    return {f.relative_to(root).as_posix(): f.stat().st_mtime_ns for f in files}


def _digests(folder: Path, pattern: str = "*") -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob(pattern))}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words = parser.add_subparsers(dest="word", required=True)
    for word, places in (("make", "fss out"), ("collect", "out"), ("compare", "one two"), ("reopen", "fss old new")):
        sub = words.add_parser(word)
        for place in places.split():
            sub.add_argument(place)
    given = parser.parse_args()
    if given.word == "compare":
        one, two = (json.loads(Path(p).read_text()) for p in (given.one, given.two))
        lines = compare(one, two)
        equal = sum(two.get(name, "(missing)") == value for name, value in one.items())
        print("\n".join([*lines, f"{equal} equal, {len(lines)} differ"]))
        return 1 if lines else 0
    if given.word == "reopen":
        return 0 if reopen(given.fss, Path(given.old).resolve(), Path(given.new).resolve()) else 1
    out = Path(given.out).resolve()
    if given.word == "make":
        if not (out / "given").exists():
            draw_inputs(out)
        fss = Fss(given.fss, out)
        make(fss)
        fss.help()
        if not list(out.glob("interrupted/runs/*")):
            fss.killed_midway()
    found = collect(out)
    (out / "outputs.json").write_text(json.dumps(found, indent=1, sort_keys=True))
    print(f"{len(found)} outputs: {out / 'outputs.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
