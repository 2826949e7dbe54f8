"""An undisturbed labelling job, whose files others are compared with."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.labelling.commands import PHOTOS, QuietJob, written
from tests.serving.helpers import photo_folder, run_fss, supports_file


@pytest.fixture(scope="session")
def quiet_job(bundle: str, tmp_path_factory: pytest.TempPathFactory) -> QuietJob:
    folder = tmp_path_factory.mktemp("quiet")
    photo_folder(folder / "given" / "photos", PHOTOS)
    supports_file(folder / "given")
    job = QuietJob(str(folder / "given"), bundle)
    done = run_fss(*job.words(folder / "out"), timeout=600)
    assert done.returncode == 0, done.stderr
    return replace(job, files=written(folder / "out"))
