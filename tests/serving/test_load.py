"""A service at four times its capacity for five minutes, or for FSS_LOAD_SECONDS. Slow."""

from __future__ import annotations

import json
import os

import pytest

from benchmarks.suite.service_load import CONFIG, run

pytestmark = pytest.mark.slow
SECONDS = float(os.environ.get("FSS_LOAD_SECONDS", "300"))
SLACK = 4  # refusals cost time too, on the model's own cores: what is accepted comes out that much slower at most


def test_too_much_is_refused_and_the_rest_is_served(bundle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch memory or latency that grows without bound, a crash, and refusals without a clear message."""
    for name in [n for n in os.environ if n.startswith("RAY_") or n == "FSS_TOKEN"]:
        monkeypatch.delenv(name)
    found = run({**CONFIG, "bundle": bundle, "seconds": SECONDS})
    print(json.dumps(found, indent=1))
    assert found["statuses"].keys() <= {"200", "429", "503"}, found["lines"]
    assert found["without_a_line"] == 0
    assert found["offered_per_s"] > 0.9 * CONFIG["times"] * found["capacity_per_s"]
    assert found["refused_per_s"] > 0
    assert found["ratio"] > 1 / SLACK
    # At most `waiting` requests are in the service; they leave it at its capacity, a batch at a time.
    bound = SLACK * (found["limits"]["waiting"] + found["limits"]["batch"]) / found["capacity_per_s"]
    assert found["accepted_s"]["p99"] < bound
    memory = found["memory_mb"]
    assert memory["second_half"] <= 1.1 * memory["first_half"] + 50
    assert found["after"]["statuses"] == {"200": 3}
    assert found["after"]["slowest_s"] < bound
