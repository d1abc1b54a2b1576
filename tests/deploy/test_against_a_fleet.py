"""Dashboards, autoscaling and runbooks ask Prometheus; here a real one answers that scrapes a real fleet under load."""

import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import free_port
from tests.deploy.fleet import KEY, TOKEN, Fleet, Prometheus
from tests.deploy.manifests import of_kind, overlay
from tests.deploy.tools import DEPLOY, ROOT, program

DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
RUNBOOKS = sorted((ROOT / "docs" / "runbooks").glob("*.md"))
ELSEWHERE = re.compile(
    r"kubectl|systemctl|journalctl|nvidia-smi|docker|ssh |dcgmi|redis-cli|…"
)  # not on a test machine


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    program("prometheus")
    fleet = Fleet(tmp_path_factory.mktemp("fleet"), free_port())
    fleet.start()
    yield fleet
    fleet.stop()


@pytest.fixture(scope="module")
def prometheus(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    prometheus = Prometheus(tmp_path_factory.mktemp("prometheus") / "run")
    prometheus.target(fleet)
    prometheus.start()
    enough = fleet.num_answers + 12
    until(lambda: fleet.num_answers > enough and len(prometheus.query("baton:kv_transfers:rate5m > 0")) > 0)
    until(lambda: len(prometheus.query("baton:ttft_seconds:p99 > 0")) > 0)
    yield prometheus
    prometheus.stop()


def until(condition: Any, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def panels(path: Path) -> list[dict[str, Any]]:
    return [panel for panel in json.loads(path.read_text())["panels"] if panel["type"] != "row"]


def filled_in(query: str, role: str) -> str:
    return (
        query.replace("$__rate_interval", "1m")
        .replace("$track", "stable")
        .replace("$node", f"{role}-0")
        .replace("$tenant", ".*")
    )


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_every_panel_shows_something(path: Path, prometheus: Prometheus):
    for panel in panels(path):
        for target in panel["targets"]:
            query = filled_in(target["expr"], "decode")
            samples = prometheus.query(query)
            if "conditional" not in panel.get("tags", []):
                assert samples, f"{panel['title']}: {query}"
                assert not all(math.isnan(float(sample["value"][1])) for sample in samples), panel["title"]


def test_dashboards_are_what_build_py_makes_of_them(tmp_path: Path):
    subprocess.run([sys.executable, str(DEPLOY / "grafana" / "build.py"), str(tmp_path)], check=True, timeout=30)
    made = {path.name: path.read_text() for path in tmp_path.glob("*.json")}
    assert made == {path.name: path.read_text() for path in DASHBOARDS}


def test_variables_of_dashboards_have_values(prometheus: Prometheus):
    for path in DASHBOARDS:
        for variable in json.loads(path.read_text())["templating"]["list"]:
            metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).groups()
            assert prometheus.query(f"count by ({label}) ({metric}{{{label}!=''}})"), variable["name"]


def scaling_queries() -> list[tuple[str, str]]:
    scaled = of_kind(overlay("cpu"), "ScaledObject")
    return [(f"{n}-{t['name']}", t["metadata"]["query"]) for n, m in scaled.items() for t in m["spec"]["triggers"]]


def test_autoscaling_always_gets_one_finite_number(prometheus: Prometheus, tmp_path: Path):
    nothing_to_scrape = Prometheus(tmp_path / "run")
    nothing_to_scrape.start()
    try:
        for name, query in scaling_queries():
            assert len(prometheus.query(query)) == 1, name
            assert math.isfinite(float(prometheus.query(query)[0]["value"][1])), name
            assert [sample["value"][1] for sample in nothing_to_scrape.query(query)] == ["0"], name
    finally:
        nothing_to_scrape.stop()


def test_requests_keep_a_pool_awake(prometheus: Prometheus):
    for name, query in scaling_queries():
        if name.endswith("-traffic"):
            assert float(prometheus.query(query)[0]["value"][1]) > 0


def test_every_rule_evaluates_and_no_alert_is_critical_on_a_healthy_fleet(prometheus: Prometheus):
    rules = json.loads(subprocess_output(["curl", "-s", f"{prometheus.url}/api/v1/rules"]))["data"]["groups"]
    assert not [rule["lastError"] for group in rules for rule in group["rules"] if rule["health"] == "err"]
    recorded = {rule["name"] for group in rules for rule in group["rules"] if rule["type"] == "recording"}
    events = {"baton:nodes:down", "baton:redis_failing:count", "baton:kv_transfer_failures:rate5m"}
    silent = {name for name in recorded - events if not prometheus.query(name)}
    assert silent <= {"baton:kv_transfer_failure_ratio:rate5m"}
    firing = prometheus.query('ALERTS{severity="critical",alertstate="firing"}')
    assert {alert["metric"]["alertname"] for alert in firing} <= {"BatonTTFTSlow", "BatonTPOTSlow"}  # a busy machine


def subprocess_output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout


def commands(path: Path) -> list[str]:
    """What a runbook gives to paste, where it can be pasted on a machine with a local fleet."""
    blocks = re.findall(r"^```sh\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)
    return [block for block in blocks if not ELSEWHERE.search(block)]


@pytest.mark.parametrize("path", RUNBOOKS, ids=lambda path: path.stem)
def test_commands_of_runbooks_work_as_pasted(path: Path, fleet: Fleet, prometheus: Prometheus, tmp_path: Path):
    links = tmp_path / "bin"
    links.mkdir()
    baton = links / "baton"
    baton.write_text(f'#!/bin/sh\nexec {sys.executable} -m fleet "$@"\n')
    baton.chmod(0o755)
    answer = fleet.ask("a request to trace")
    node = next(n for n in fleet.status()["nodes"] if n["role"] == "decode")
    env = fleet.env | {
        "PATH": f"{links}{os.pathsep}{Path(program('promtool')).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PROMETHEUS": prometheus.url,
        "BATON": f"http://127.0.0.1:{fleet.port}",
        "KEY": KEY,
        "NODE": "decode-0",
        "METRICS": node["metrics"],
        "TOKEN": TOKEN,
        "REQUEST_ID": answer["id"],
    }
    for block in commands(path):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            env=env,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        assert done.stdout.strip(), f"says nothing:\n{block}"
