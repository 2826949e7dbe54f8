"""FCP and VRP-SAM equal the official implementations, and would not if they were built a little differently."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from safetensors.torch import load_file

from fss_models.golden import run_folder
from fss_models.methods.fcp import golden as fcp
from fss_models.methods.vrp_sam import golden as vrp_sam
from tests.fss_models import prompting
from tests.fss_models.shared_folder import GOLDEN, needs_golden

RUN_CASE = {"fcp": fcp.run_case, "vrp_sam": vrp_sam.run_case}
CASES = [(method, name) for method in RUN_CASE for name in prompting.CASES[method]]
MISTAKES = [(method, mistake) for method in RUN_CASE for mistake in prompting.MISTAKES[method]]
NAMES = [f"{method}-{mistake.__name__}" for method, mistake in MISTAKES]
CLOSE = 1e-4  # an equal build stays below on any machine
Mistake = Callable[[pytest.MonkeyPatch], None]


@needs_golden
@pytest.mark.parametrize("method", RUN_CASE)
def test_every_golden_case_passes(method: str) -> None:
    checks = list(run_folder(GOLDEN / method))
    assert [c for c in checks if not c.passed] == []
    assert {c.case for c in checks} == set(json.loads((GOLDEN / method / "cases.json").read_text()))


@pytest.mark.parametrize(("method", "name"), CASES)
def test_the_stored_outputs_are_reproduced(method: str, name: str) -> None:
    stored = load_file(prompting.DATA / f"{method}.safetensors")
    found = prompting.outputs(method, name)
    assert found.keys() == {k for k in stored if k.startswith(f"{name}/")}
    assert prompting.worst(found, stored) < CLOSE


@pytest.mark.parametrize(("method", "mistake"), MISTAKES, ids=NAMES)
def test_a_mistake_shows_in_the_stored_outputs(method: str, mistake: Mistake, monkeypatch: pytest.MonkeyPatch) -> None:
    mistake(monkeypatch)
    stored = load_file(prompting.DATA / f"{method}.safetensors")
    assert prompting.worst(prompting.outputs(method, "one_shot"), stored) > 10 * CLOSE


@needs_golden
@pytest.mark.parametrize(("method", "mistake"), MISTAKES, ids=NAMES)
def test_a_mistake_makes_a_golden_case_fail(method: str, mistake: Mistake, monkeypatch: pytest.MonkeyPatch) -> None:
    mistake(monkeypatch)
    case = json.loads((GOLDEN / method / "cases.json").read_text())["case_a_1shot"]
    failed = [c for c in RUN_CASE[method](GOLDEN / method, "case_a_1shot", case) if not c.passed]
    assert failed
    assert max(c.error for c in failed) > 10 * CLOSE
