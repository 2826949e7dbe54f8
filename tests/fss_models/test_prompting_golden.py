"""FCP and VRP-SAM equal the official implementations, and would not if they were built a little differently."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from safetensors.torch import load_file

from fss_models.verification import fcp, tolerances, vrp_sam
from fss_models.verification.frame import run_folder
from tests.fss_models import prompting
from tests.fss_models.shared_folder import GOLDEN, needs_golden
from tests.fss_models.stored_outputs import errors, excessive, mistaken

RUN_CASE = {"fcp": fcp.run_case, "vrp_sam": vrp_sam.run_case}
CASES = [(method, name) for method in RUN_CASE for name in prompting.CASES[method]]
MISTAKES = [(method, mistake) for method in RUN_CASE for mistake in prompting.MISTAKES[method]]
NAMES = [f"{method}-{mistake.__name__}" for method, mistake in MISTAKES]
Mistake = Callable[[pytest.MonkeyPatch], None]


def test_a_mistake_needs_several_times_the_error_of_an_equal_build() -> None:
    bounds = [b for kinds in (*tolerances.GOLDEN.values(), tolerances.STORED) for b in kinds.values()]
    assert all(b.floor >= 10 * b.tolerance for b in bounds)


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
    assert excessive(errors(found, stored)) == {}


@pytest.mark.parametrize(("method", "mistake"), MISTAKES, ids=NAMES)
def test_a_mistake_shows_in_the_stored_outputs(method: str, mistake: Mistake, monkeypatch: pytest.MonkeyPatch) -> None:
    mistake(monkeypatch)
    stored = load_file(prompting.DATA / f"{method}.safetensors")
    assert mistaken(errors(prompting.outputs(method, "one_shot"), stored))


@needs_golden
@pytest.mark.parametrize(("method", "mistake"), MISTAKES, ids=NAMES)
def test_a_mistake_makes_a_golden_case_fail(method: str, mistake: Mistake, monkeypatch: pytest.MonkeyPatch) -> None:
    mistake(monkeypatch)
    case = json.loads((GOLDEN / method / "cases.json").read_text())["case_a_1shot"]
    assert any(c.mistaken for c in RUN_CASE[method](GOLDEN / method, "case_a_1shot", case) if c.tolerance)
