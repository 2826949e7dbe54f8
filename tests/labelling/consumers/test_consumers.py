"""The libraries of other tools read what fss writes, in an environment of their own; the masks equal the truth."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import time
import venv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pipelines.base.webhook import read_secret, signature
from tests.labelling.finished import Masks, finished_job, known_masks

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
PLACE = Path(sys.prefix) / "consumers"


@dataclass(frozen=True)
class Read:
    """The masks that a library read."""

    photos: set[str]
    masks: dict[str, np.ndarray]

    def mask(self, photo: str, label: str, like: np.ndarray) -> np.ndarray:
        """The mask of a photo and class; empty where the library found none."""
        return self.masks.get(f"{photo}|{label}", np.zeros_like(like))


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter of the consumers' environment, which is made once, in the project's environment."""
    wanted = (HERE / "requirements.txt").read_text() + sys.version
    stamp, interpreter = PLACE / "installed", PLACE / "bin" / "python"
    if not stamp.exists() or stamp.read_text() != wanted:
        venv.create(PLACE, with_pip=True, clear=True)
        purelib = sysconfig.get_path("purelib", vars={"base": str(PLACE), "platbase": str(PLACE)})
        (Path(purelib) / "project.pth").write_text(sysconfig.get_path("purelib"))  # behind its own packages
        made = subprocess.run([interpreter, "-m", "pip", "install", "-q", "--no-deps", "-r", HERE / "requirements.txt"],
                              capture_output=True, text=True, timeout=800, check=False)
        if made.returncode:
            pytest.skip(f"cannot install {HERE.name}/requirements.txt: {made.stderr.strip().splitlines()[-1]}")
        stamp.write_text(wanted)
    return interpreter


@pytest.fixture(scope="module")
def truth() -> Masks:
    return known_masks()


@pytest.fixture(scope="module")
def job(truth: Masks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished job and its photos."""
    return finished_job(tmp_path_factory.mktemp("consumers"), truth).parent


def read(python: Path, reader: str, job: Path) -> Read:
    """Read the labels with the library that `reader` names first."""
    result = job / f"{reader}.npz"
    done = subprocess.run([python, HERE / "read.py", reader, job, result], capture_output=True, text=True, timeout=300,
                          check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(result) as found:
        masks = {key: found[key] for key in found}
    return Read(set(masks.pop("photos").tolist()), masks)


@pytest.mark.parametrize("reader", ["supervision-coco", "datumaro-coco", "datumaro-cvat", "label-studio"])
def test_run_lengths_are_read_exactly(python: Path, reader: str, job: Path, truth: Masks) -> None:
    found = read(python, reader, job)
    assert found.photos == set(truth)
    assert found.masks.keys() == {f"{n}|{c}" for n, masks in truth.items() for c, m in masks.items() if m.any()}
    for name, masks in truth.items():
        for label, mask in masks.items():
            assert (found.mask(name, label, mask) == mask).all(), f"{name} {label}"


def bordered(mask: np.ndarray) -> np.ndarray:
    """With the pixels to the right of it and below: what OpenCV's fillPoly makes of the outline.

    Our corners are where pixels meet, as COCO has it: a pixel at (x, y) goes from x to x + 1. OpenCV takes them for
    centres of pixels, and fills the border too. So do supervision and Ultralytics with anybody's COCO polygons.
    """
    grown = np.pad(mask, ((1, 0), (1, 0)))
    wide: np.ndarray = grown[1:, 1:] | grown[:-1, 1:] | grown[1:, :-1] | grown[:-1, :-1]
    return wide


@pytest.mark.parametrize(("reader", "below"), [("supervision-coco-polygons", True), ("ultralytics-yolo", True),
                                               ("supervision-yolo", False)])
def test_polygons_are_read_but_for_the_border(python: Path, reader: str, below: bool, job: Path, truth: Masks) -> None:
    """`below`: whether the library sees photos in sub-folders of images/."""
    found = read(python, reader, job)
    wanted = {n: masks for n, masks in truth.items() if below or "/" not in n}
    assert found.photos - {"bad.jpg"} == set(wanted)
    for name, masks in wanted.items():
        for label, mask in masks.items():
            assert (found.mask(name, label, mask) == bordered(mask)).all(), f"{name} {label}"


def test_labelme_opens_its_files_and_photos(python: Path, job: Path, truth: Masks) -> None:
    """Pieces with holes are exact; LabelMe fills the border of polygons too (see `bordered`)."""
    found = read(python, "labelme", job)
    assert found.photos == set(truth)
    for name, masks in truth.items():
        for label, mask in masks.items():
            seen = found.mask(name, label, mask)
            assert not (mask & ~seen).any(), f"{name} {label}"
            assert not (seen & ~bordered(mask)).any(), f"{name} {label}"


VERIFY = """import json, sys
from standardwebhooks import Webhook, WebhookVerificationError
body, headers = json.load(sys.stdin)
assert Webhook(sys.argv[1]).verify(body, headers) == json.loads(body)
try:
    Webhook(sys.argv[1]).verify(body + " ", headers)
except WebhookVerificationError:
    print("verified")
"""


def test_events_are_verified_by_the_library_of_their_specification(python: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    secret, body, now = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", b'{"type": "label.done"}', int(time.time())
    monkeypatch.setenv("FSS_WEBHOOK_SECRET", secret)
    headers = {"webhook-id": "1", "webhook-timestamp": str(now),
               "webhook-signature": signature(read_secret(), "1", now, body)}
    done = subprocess.run([python, "-c", VERIFY, secret], input=json.dumps([body.decode(), headers]),
                          capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout == "verified\n", done.stderr
