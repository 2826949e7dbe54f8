"""FCP equals the official implementation, and would not if it were built a little differently."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from safetensors.torch import load_file

from fss_models.golden import run_folder
from fss_models.methods.fcp.golden import run_case
from tests.models import prompting
from tests.models.shared_folder import GOLDEN, needs_golden

METHOD, FOLDER = "fcp", GOLDEN / "fcp"
CLOSE = 1e-4  # an equal build stays below on any machine
Mistake = Callable[[pytest.MonkeyPatch], None]


@needs_golden
def test_every_golden_case_passes() -> None:
    checks = list(run_folder(FOLDER))
    assert [c for c in checks if not c.passed] == []
    assert {c.case for c in checks} == set(json.loads((FOLDER / "cases.json").read_text()))


@pytest.mark.parametrize("name", prompting.CASES[METHOD])
def test_the_stored_outputs_are_reproduced(name: str) -> None:
    stored = load_file(prompting.DATA / f"{METHOD}.safetensors")
    found = prompting.outputs(METHOD, name)
    assert found.keys() == {k for k in stored if k.startswith(f"{name}/")}
    assert prompting.worst(found, stored) < CLOSE


@pytest.mark.parametrize("mistake", prompting.MISTAKES[METHOD], ids=lambda m: m.__name__)
def test_a_mistake_shows_in_the_stored_outputs(mistake: Mistake, monkeypatch: pytest.MonkeyPatch) -> None:
    mistake(monkeypatch)
    stored = load_file(prompting.DATA / f"{METHOD}.safetensors")
    assert prompting.worst(prompting.outputs(METHOD, "one_shot"), stored) > 10 * CLOSE


@needs_golden
@pytest.mark.parametrize("mistake", prompting.MISTAKES[METHOD], ids=lambda m: m.__name__)
def test_a_mistake_makes_a_golden_case_fail(mistake: Mistake, monkeypatch: pytest.MonkeyPatch) -> None:
    mistake(monkeypatch)
    case = json.loads((FOLDER / "cases.json").read_text())["case_a_1shot"]
    failed = [c for c in run_case(FOLDER, "case_a_1shot", case) if not c.passed]
    assert failed
    assert max(c.error for c in failed) > 10 * CLOSE
