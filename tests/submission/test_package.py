"""The files that are sent with a job: code and small inputs, never data, results, environments or secrets."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from fss_models.errors import FssError
from pipelines.submission.package import pack
from pipelines.submission.request import SubmissionRequest

SENT = {"recipe.yaml": "name: mine", "pipelines/data/read.py": "x = 1", "marks/a.png": "png",
        ".ci/run": "true"}
LEFT_OUT = {"out/big.bin": "x", "data/photo.jpg": "x", ".venv/bin/python": "x", ".git/config": "x", ".env": "KEY=1",
            "pipelines/__pycache__/read.pyc": "x", "deploy/server.pem": "x", "mlflow.db": "x", "fss.egg-info/PKG": "x"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "work"
    for name, text in {**SENT, **LEFT_OUT}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def names(path: Path) -> set[str]:
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


def test_code_goes_and_the_rest_stays(folder: Path, tmp_path: Path) -> None:
    package = pack(folder, tmp_path / "a.zip", max_bytes=10_000)
    assert names(package.path) == set(SENT)
    assert (package.files, package.bytes) == (4, sum(len(t) for t in SENT.values()))
    assert {"out", "data", ".git", ".venv", ".env"} <= set(package.left_out)


def test_the_secrets_of_compose_stay(folder: Path, tmp_path: Path) -> None:
    """The secrets that the compose script makes are left out, whatever folder they are in."""
    place = folder / "infra" / "compose"
    place.mkdir(parents=True)
    script = shutil.copy(Path(__file__).parents[2] / "infra" / "compose" / "make_secrets.sh", place)
    subprocess.run(["sh", script], check=True, capture_output=True)
    made = [p.name for p in (place / "secrets").iterdir()]
    assert len(made) == 5
    for name in made:
        shutil.copy(place / "secrets" / name, folder)
    assert names(pack(folder, tmp_path / "a.zip", max_bytes=10_000).path) == {*SENT, "infra/compose/make_secrets.sh"}


def test_the_same_files_make_the_same_archive(folder: Path, tmp_path: Path) -> None:
    first = pack(folder, tmp_path / "a.zip", max_bytes=10_000).path.read_bytes()
    (folder / "recipe.yaml").write_text(SENT["recipe.yaml"])  # a new time, the same content
    assert pack(folder, tmp_path / "b.zip", max_bytes=10_000).path.read_bytes() == first


@pytest.mark.parametrize("pattern", ["marks", "*.png", "marks/", "marks/*"])
def test_more_can_be_excluded(folder: Path, tmp_path: Path, pattern: str) -> None:
    package = pack(folder, tmp_path / "a.zip", exclude=[pattern], max_bytes=10_000)
    assert names(package.path) == set(SENT) - {"marks/a.png"}


def test_too_much_is_refused_with_the_largest(folder: Path, tmp_path: Path) -> None:
    (folder / "movies").mkdir()
    (folder / "movies" / "a.mp4").write_bytes(bytes(5_000_000))
    with pytest.raises(FssError, match=r"5\.0 MB to send, the limit is 1\.0 MB; largest: movies 5\.0 MB"):
        pack(folder, tmp_path / "a.zip", max_bytes=1_000_000)
    assert not (tmp_path / "a.zip").exists()


def test_a_checkout_is_within_the_limit(tmp_path: Path) -> None:
    package = pack(Path(__file__).parents[2], tmp_path / "a.zip", max_bytes=SubmissionRequest(arguments=()).max_bytes)
    sent = names(package.path)
    assert {"jobs/cli.py", "jobs/recipes/demo.yaml", "fss_models/shipped/nano.safetensors"} <= sent
    assert not [n for n in sent if n.startswith(("tests/", "benchmarks/"))]
    assert {"tests", "benchmarks"} <= set(package.left_out)


def test_links_out_of_the_folder_are_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "private.txt").write_text("mine")
    (folder / "link.txt").symlink_to(tmp_path / "private.txt")
    (folder / "again.yaml").symlink_to(folder / "recipe.yaml")
    assert names(pack(folder, tmp_path / "a.zip", max_bytes=10_000).path) == {*SENT, "again.yaml"}


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FssError, match="no such folder"):
        pack(tmp_path / "nowhere", tmp_path / "a.zip", max_bytes=1)
