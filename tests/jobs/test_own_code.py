"""A working folder may have packages that are named like ours: fss and all processes that it starts use our own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from jobs.own_code import hidden_package
from pipelines.base.code_path import ROOT, worker_paths
from pipelines.inference.support_files import read_support_file
from pipelines.serving.client import Client
from pipelines.submission.package import hiding, pack
from tests.serving.helpers import Running, clean_env, hiding_folder, photo_folder, supports_file, wait_for


def test_replicas_and_tasks_use_our_own_packages(shipped_service: Running, tmp_path: Path) -> None:
    """Would catch the working folder on the path of Ray's processes: a replica, and the task of a job."""
    photos, url = photo_folder(tmp_path / "photos", 2), shipped_service.url
    support = Client(url).add_support(read_support_file(str(supports_file(tmp_path))))
    asked = {"images": str(photos), "support_ids": [support]}
    job = httpx.post(f"{url}/v1/jobs", json=asked, timeout=60).json()
    where = f"{url}/v1/jobs/{job['job_id']}"
    wait_for(lambda: httpx.get(where).json()["state"] != "running")
    assert httpx.get(where).json()["state"] == "done", httpx.get(where).json()


def test_the_working_folder_is_not_on_the_path_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert worker_paths()[-1] == str(ROOT)  # the last one comes first
    assert str(tmp_path) not in worker_paths()
    monkeypatch.syspath_prepend("")
    assert worker_paths()[-2:] == [str(tmp_path), str(ROOT)]  # the command itself imports from it


@pytest.mark.parametrize("name", ["pipelines", "infra", "fss_models"])
def test_a_hidden_package_is_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    done = subprocess.run([sys.executable, "-m", "jobs.cli", "doctor"], cwd=tmp_path, capture_output=True, text=True,
                          env=clean_env(PYTHONPATH=str(ROOT)), check=False, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith(f"error: {tmp_path / name} hides the package {name!r} of fss (run `fss`, ")
    assert hidden_package(ROOT) == ""


def test_what_would_hide_our_packages_is_not_sent(tmp_path: Path) -> None:
    folder = hiding_folder(tmp_path / "mine")
    (folder / "data_of" / "jobs").mkdir(parents=True)
    (folder / "data_of" / "jobs" / "a.json").write_text("{}")
    (folder / "supports.json").write_text("{}")
    (folder / "fss_models.py").touch()
    found = hiding(folder)
    assert found == ("pipelines", "jobs", "infra", "fss_models.py")
    package = pack(folder, tmp_path / "work.zip", exclude=[f"/{name}" for name in found], max_bytes=1000)
    assert (package.files, set(package.left_out)) == (2, set(found))
    assert hiding(ROOT) == ()  # a checkout is sent for its code
    (tmp_path / "recipes" / "jobs").mkdir(parents=True)
    (tmp_path / "recipes" / "jobs" / "mine.yaml").touch()
    assert hiding(tmp_path / "recipes") == ()  # no Python in it: an installed package comes first
