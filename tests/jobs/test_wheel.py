"""The wheel, installed into a folder of its own: `fss` labels photos in an empty folder, without a checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    files = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, text=True,
                           capture_output=True, check=True).stdout.split("\0")
    for name in files:  # a copy: building leaves folders behind
        packaged = name.startswith(("fss_models/", "pipelines/", "jobs/", "infra/")) or "/" not in name
        if packaged and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(out), "."]
    subprocess.run(build, cwd=source, check=True, timeout=300)
    return next(out.glob("fss-*.whl"))


def test_the_wheel_has_what_is_needed_and_its_licence(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for needed in ("fss_models/py.typed", "fss_models/shipped/champion/bundle.json",
                   "fss_models/shipped/nano.safetensors", "jobs/recipes/demo.yaml", "pipelines/console/page.html",
                   "pipelines/pages/style.css"):
        assert needed in names
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert not [n for n in names if n.startswith(("tests/", "docs/", "benchmarks/"))]


def test_fss_from_the_wheel_labels_a_photo_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    place, work = tmp_path / "installed", tmp_path / "work"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(place), str(wheel)],
                   check=True, timeout=300)
    (work / "photos").mkdir(parents=True)
    photo = np.full((64, 64, 3), 90, np.uint8)
    photo[20:44, 20:44] = (220, 40, 30)
    for name in ("a.png", "photos/b.png"):
        Image.fromarray(photo).save(work / name)
    (work / "supports.json").write_text(json.dumps(
        {"class_name": "square", "supports": [{"image": "a.png", "box": [20, 20, 44, 44]}]}))
    env = {k: v for k, v in os.environ.items() if k not in ("FSS_SHIPPED", "RAY_ADDRESS")} | {"PYTHONPATH": str(place)}
    fss = [str(place / "bin/fss")] if (place / "bin/fss").exists() else [sys.executable, "-P", "-m", "jobs.cli"]
    where = subprocess.run([sys.executable, "-P", "-c", "import fss_models; print(fss_models.__file__)"], cwd=work,
                           env=env, capture_output=True, text=True, check=True).stdout
    assert where.startswith(str(place))
    done = subprocess.run([*fss, "label", "--images", "photos", "--supports", "supports.json", "--out", "labels",
                           "--json"], cwd=work, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    labels = json.loads((work / "labels/labels.json").read_text())
    assert len(labels["images"]) == 1
    assert json.loads(done.stdout)["failed"] == 0
