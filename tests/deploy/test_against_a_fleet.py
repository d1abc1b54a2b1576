"""Runs the queries of dashboards, autoscaling and runbooks on a real Prometheus and a real fleet under load."""

import json
import math
import re
import runpy
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import free_port
from tests.deploy.fleet import KEY, Fleet, Prometheus
from tests.deploy.manifests import of_kind, overlay
from tests.deploy.proxy import running
from tests.deploy.runbooks import PROMTOOL, RUNBOOKS, commands, environment, queries
from tests.deploy.tools import DEPLOY, ROOT, program

DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))


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
    until(
        lambda: not prometheus.query("sum_over_time(up[1m]) < 3")
    )  # on a busy machine a node may answer a scrape too late
    yield prometheus
    prometheus.stop()


def until(condition: Any, timeout_s: float = 60, what: str = "") -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
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
            if "conditional" in panel.get("tags", []):
                prometheus.query(query)
            else:
                until(lambda query=query: shows(prometheus, query), what=f"{panel['title']}: {query}")


def shows(prometheus: Prometheus, query: str) -> bool:
    return not all(math.isnan(float(sample["value"][1])) for sample in prometheus.query(query))


def test_dashboards_are_what_build_py_makes_of_them(tmp_path: Path):
    subprocess.run([sys.executable, str(DEPLOY / "grafana" / "build.py"), str(tmp_path)], check=True, timeout=30)
    made = {path.name: path.read_text() for path in tmp_path.glob("*.json")}
    assert made == {path.name: path.read_text() for path in DASHBOARDS}


def test_variables_of_dashboards_have_values(prometheus: Prometheus):
    for path in DASHBOARDS:
        for variable in json.loads(path.read_text())["templating"]["list"]:
            metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).groups()
            if variable["name"] == "tenant":
                continue  # only in fleets whose keys have names
            assert prometheus.query(f"count by ({label}) ({metric}{{{label}!=''}})"), variable["name"]


def scaling_queries() -> list[tuple[str, str]]:
    scaled = of_kind(overlay("cpu"), "ScaledObject")
    return [(f"{n}-{t['name']}", t["metadata"]["query"]) for n, m in scaled.items() for t in m["spec"]["triggers"]]


def test_autoscaling_always_gets_one_finite_number(prometheus: Prometheus):
    for name, query in scaling_queries():
        (sample,) = prometheus.query(query)
        assert math.isfinite(float(sample["value"][1])), name
        nobody = prometheus.query(query.replace('track="stable"', 'track="nobody\'s"'))
        assert [sample["value"][1] for sample in nobody] == ["0"], name


def test_requests_keep_a_pool_awake(prometheus: Prometheus):
    for name, query in scaling_queries():
        if name.endswith("-traffic"):
            assert float(prometheus.query(query)[0]["value"][1]) > 0


def test_every_rule_evaluates_and_no_alert_is_critical_on_a_healthy_fleet(prometheus: Prometheus):
    rules = json.loads(subprocess_output(["curl", "-s", f"{prometheus.url}/api/v1/rules"]))["data"]["groups"]
    assert not [rule["lastError"] for group in rules for rule in group["rules"] if rule["health"] == "err"]
    recorded = {rule["name"] for group in rules for rule in group["rules"] if rule["type"] == "recording"}
    events = {"baton:nodes:down", "baton:redis_failing:count", "baton:kv_transfer_failures:rate5m"}
    always = recorded - events - {"baton:kv_transfer_failure_ratio:rate5m"}
    until(lambda: all(prometheus.query(name) for name in always), what="a recorded series")
    firing = prometheus.query('ALERTS{severity="critical",alertstate="firing"}')
    assert {alert["metric"]["alertname"] for alert in firing} <= {
        "BatonTTFTSlow",
        "BatonTPOTSlow",
    }  # these may fire on a busy machine


@pytest.fixture(scope="module")
def proxy(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The proxy of the compose stack, in front of the fleet's router."""
    with running(tmp_path_factory.mktemp("proxy"), f"127.0.0.1:{fleet.port}") as port:
        yield f"http://127.0.0.1:{port}"


def status_of(url: str) -> int:
    try:
        return int(urllib.request.urlopen(url, timeout=10).status)
    except urllib.error.HTTPError as error:
        return int(error.code)
    except OSError:
        return 0


def test_a_stream_passes_the_proxy(proxy: str):
    content = {"model": "mine", "prompt": "a baton", "temperature": 0, "max_tokens": 20, "stream": True}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(f"{proxy}/v1/completions", json.dumps(content).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.headers["x-request-id"]
        assert answer.read().endswith(b"data: [DONE]\n\n")


def test_the_proxy_offers_nothing_but_the_api(proxy: str):
    for path in ("/metrics", "/docs", "/ready", "/dashboard", "/admin/fleet", "/v1/../metrics"):
        assert status_of(proxy + path) == 404, path
    assert status_of(f"{proxy}/v1/models") == 401


def test_the_proxy_limits_the_rate_of_an_address(proxy: str):
    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(status_of, [f"{proxy}/v1/models"] * 300))
    assert set(statuses) == {401, 429}
    until(lambda: status_of(f"{proxy}/v1/models") == 401)


def error_of(url: str, body: bytes | None = None) -> tuple[int, str, str | None]:
    """Return status, error code and Retry-After."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(url, body, timeout=30)
    return caught.value.code, json.load(caught.value)["error"]["code"], caught.value.headers["Retry-After"]


def test_the_proxys_own_refusals_look_like_a_routers(proxy: str, tmp_path: Path):
    assert error_of(f"{proxy}/v1/completions", bytes(9 * 2**20)) == (413, "body_too_large", None)
    with running(tmp_path, f"127.0.0.1:{free_port()}") as port:
        assert error_of(f"http://127.0.0.1:{port}/v1/models") == (503, "no_capacity", "1")


def test_the_images_health_check_reports_who_serves(fleet: Fleet):
    check = runpy.run_path(str(DEPLOY / "docker" / "healthcheck.py"))["main"]
    for node in fleet.status()["nodes"]:
        host, _, port = node["address"].rpartition(":")
        assert check(["baton", node["role"]], {"BATON_HOST": host, "BATON_PORT": port}) == 0
        assert check(["baton", node["role"]], {"BATON_HOST": host, "BATON_PORT": "1"}) == 1


def subprocess_output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout


def test_queries_of_runbooks_are_answered(prometheus: Prometheus):
    assert len(queries()) > 30
    of_events = ("baton:kv_transfer_failures", "baton_router_failovers", "deriv(")
    for query, book in queries().items():
        if any(word in query for word in of_events):
            prometheus.query(query)
        else:
            until(lambda query=query: prometheus.query(query), what=f"{book}: {query}")


def test_commands_of_runbooks_work_as_pasted(fleet: Fleet, prometheus: Prometheus, tmp_path: Path):
    env = environment(fleet, prometheus, tmp_path)
    one_query = f"promtool query instant $PROMETHEUS '{next(iter(queries()))}'"
    for command in [one_query, *(command for command in commands() if not PROMTOOL.fullmatch(command))]:
        shell = ["bash", "-euo", "pipefail", "-c", command]
        done = subprocess.run(shell, env=env, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert done.stdout.strip() or command.startswith("export "), f"says nothing: {command}"


def test_runbooks_have_the_same_sections_and_are_all_indexed():
    index = (ROOT / "docs" / "runbooks" / "README.md").read_text()
    for path in RUNBOOKS:
        if path.stem != "README":
            parts = re.findall(r"^## (.+)$", path.read_text(), re.MULTILINE)
            assert parts == ["Symptoms", "Look at", "Do", "Verify"], path.name
            assert f"({path.name})" in index
        for link in re.findall(r"\]\(([\w/.-]+)\)", path.read_text()):
            assert (path.parent / link).exists(), f"{path.name}: {link}"
