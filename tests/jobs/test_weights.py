"""`fss weights`: an official file is imported and exported again; a wrong file gives one line and writes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fss_models import registry
from fss_models.official import official_state
from fss_models.sam2_core.build import build_sam2
from tests.fixtures.command import Fss
from tests.fss_models.debug_outputs import fill


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SAM 2 checkpoint in Meta's layout with random values, and official adapters for it."""
    folder = tmp_path_factory.mktemp("weights")
    torch.save({"model": build_sam2("tiny", object_scores=True).state_dict()}, folder / "sam2.pt")
    model = registry.build("sansa", "tiny", weights=str(folder / "sam2.pt"))
    fill(model)
    torch.save({"model": official_state(model)}, folder / "adapter.pth")
    return folder


def test_import_and_export_give_the_same_tensors(files: Path, fss: Fss, tmp_path: Path) -> None:
    given = ("--method", "sansa", "--preset", "tiny", "--weights", "sam2.pt")
    done = fss("weights", "import", "adapter.pth", *given, "--out", str(tmp_path / "bundle"), "--json", cwd=files)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tensors"] == 54
    assert json.loads(done.stdout)["config"]["factor"] == 0.3
    info = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    assert len(info["sha256"]) == 64
    out = fss("weights", "export", str(tmp_path / "bundle"), "--out", str(tmp_path / "again.safetensors"), cwd=files)
    assert out.returncode == 0, out.stderr
    again, before = load_file(tmp_path / "again.safetensors"), torch.load(files / "adapter.pth")["model"]
    assert again.keys() == before.keys()
    assert all(torch.equal(again[k], before[k]) for k in before)


def test_a_wrong_file_names_its_first_key_and_writes_nothing(files: Path, fss: Fss, tmp_path: Path) -> None:
    state = torch.load(files / "adapter.pth")["model"]
    first = sorted(state)[0]
    save_file({k: v for k, v in state.items() if k != first}, files / "short.safetensors")
    given = ("--method", "sansa", "--preset", "tiny", "--weights", "sam2.pt", "--out", str(tmp_path / "bundle"))
    done = fss("weights", "import", "short.safetensors", *given, cwd=files)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == [
        f"error: short.safetensors: lacks '{first}' (is it an adapter of preset 'tiny'?)"]
    assert not (tmp_path / "bundle").exists()
