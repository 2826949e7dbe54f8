"""The dashboard uses only metrics that exist: those of Ray's own dashboards and those of our code."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from tests.infra.manifests import INFRA, ROOT

DASHBOARD = INFRA / "monitoring" / "grafana" / "dashboards" / "fss.json"


def expressions() -> Iterator[str]:
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        yield from (target["expr"] for target in panel["targets"])


def exported_by_ray() -> str:
    found = find_spec("ray")  # not imported, since Ray reads its authentication settings on import
    assert found is not None
    assert found.origin is not None
    folder = Path(found.origin).parent / "dashboard" / "modules" / "metrics" / "dashboards"
    return "\n".join(path.read_text() for path in folder.glob("*.py"))


def exported_by_us(file: str) -> set[str]:
    """The metrics of a file under their names in Prometheus: with Ray's prefix, and `_total` at the end of counters."""
    made = re.findall(r'(Counter|Gauge)\("(\w+)"', (ROOT / "pipelines" / file).read_text())
    return {f"ray_{name}{'_total' if kind == 'Counter' else ''}" for kind, name in made}


def test_every_metric_exists() -> None:
    theirs, ours = exported_by_ray(), exported_by_us("base/run_metrics.py")
    all_ours = ours | exported_by_us("serving/metrics.py")
    used = {name for expr in expressions() for name in re.findall(r"\bray_\w+", expr)}
    assert len(used) >= 10
    missing = {n for n in used if n not in all_ours and not re.search(rf"\b{n}\b", theirs)}
    assert not missing
    assert ours <= used, "the dashboard shows every metric of a sweep"


def test_increases_are_of_counters_that_begin_at_zero() -> None:
    """Prometheus sees no increase in a counter that is first exported with the value 1."""
    increased = {name for expr in expressions() for name in re.findall(r"increase\((ray_\w+)", expr)}
    assert increased == {"ray_fss_runs_ended_total", "ray_fss_requests_total"}
    assert increased <= exported_by_us("base/run_metrics.py") | exported_by_us("serving/metrics.py")


def test_every_expression_parses() -> None:
    parser = pytest.importorskip("promql_parser", reason="pip install promql-parser")
    for expr in expressions():
        parser.parse(expr)


def test_scrape_and_provisioning_files() -> None:
    compose = yaml.safe_load((INFRA / "compose" / "compose.yaml").read_text())["services"]
    scrape = yaml.safe_load((INFRA / "monitoring" / "prometheus.yaml").read_text())["scrape_configs"][0]
    scraped = scrape["dns_sd_configs"][0]
    assert set(scraped["names"]) <= set(compose)
    assert all(f"--metrics-export-port={scraped['port']}" in compose[name]["command"] for name in scraped["names"])
    source = yaml.safe_load((INFRA / "monitoring/grafana/datasources/prometheus.yaml").read_text())["datasources"][0]
    assert {p["datasource"]["uid"] for p in json.loads(DASHBOARD.read_text())["panels"]} == {source["uid"]}
    pods = yaml.safe_load((INFRA / "monitoring" / "prometheus-kubernetes.yaml").read_text())["scrape_configs"][0]
    cluster = yaml.safe_load((INFRA / "kuberay/cluster/cluster.yaml").read_text())["spec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        ports = {p["name"]: p["containerPort"] for p in group["template"]["spec"]["containers"][0]["ports"]}
        assert ports[pods["relabel_configs"][0]["regex"]] == scraped["port"]
