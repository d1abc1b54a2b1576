"""A canary gets its share in steps, and is rolled back automatically. kubectl and Prometheus are stand-ins."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.deploy.manifests import of_kind, overlay
from tests.deploy.tools import DEPLOY

SCRIPT = DEPLOY / "kubernetes" / "canary.py"
WEIGHT = "--namespace baton annotate ingress/baton-canary nginx.ingress.kubernetes.io/canary-weight={} --overwrite"
SCALE = (
    "--namespace baton scale deployment/router-canary deployment/prefill-canary deployment/decode-canary --replicas=0"
)


class Prometheus(BaseHTTPRequestHandler):
    """Answers a query by its metric, with the value that a test has put into `known`."""

    known: ClassVar[dict[str, float]] = {}

    def do_GET(self) -> None:
        (query,) = parse_qs(urlsplit(self.path).query)["query"]
        found = [value for word, value in self.known.items() if word in query]
        samples = [{"metric": {}, "value": [0, str(value)]} for value in found]
        body = json.dumps({"status": "success", "data": {"resultType": "vector", "result": samples}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def prometheus() -> Iterator[str]:
    Prometheus.known = {"error_ratio": 0.0, "ttft": 0.5, "tpot": 0.5, "in_flight": 0.0}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Prometheus)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join(timeout=10)


class Canary:
    def __init__(self, folder: Path, prometheus: str) -> None:
        self.notes, self._prometheus = folder / "notes", prometheus
        kubectl = folder / "kubectl"
        kubectl.write_text(f'#!/bin/sh\necho "$*" >> {self.notes}\n')
        kubectl.chmod(0o755)
        self._env = os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(SCRIPT), *args, "--prometheus", self._prometheus, "--pace", "0.00005"]
        return subprocess.run(command, env=self._env, capture_output=True, text=True, timeout=60, check=False)

    def calls(self) -> list[str]:
        return self.notes.read_text().splitlines()


@pytest.fixture
def canary(tmp_path: Path, prometheus: str) -> Canary:
    return Canary(tmp_path, prometheus)


def test_a_good_canary_gets_all_of_the_traffic(canary: Canary):
    done = canary.run("rollout")
    assert done.returncode == 0, done.stdout + done.stderr
    assert canary.calls() == [WEIGHT.format(percent) for percent in (5, 25, 50, 100)]


@pytest.mark.parametrize(
    ("known", "steps", "why"),
    [
        ({"error_ratio": 0.002}, [5], "0.20% of its requests fail"),
        ({"error_ratio": float("nan")}, [5], "nothing was tested"),
        ({"ttft": 2.1}, [5, 25], "TTFT p99 is 2.1 times"),
        ({"tpot": 2.1}, [5, 25], "TPOT p99 is 2.1 times"),
    ],
)
def test_a_bad_canary_is_rolled_back(canary: Canary, known: dict[str, float], steps: list[int], why: str):
    Prometheus.known |= known
    done = canary.run("rollout")
    assert done.returncode == 1
    assert why in done.stdout
    assert canary.calls() == [*(WEIGHT.format(percent) for percent in steps), WEIGHT.format(0), SCALE]


def test_a_canary_without_monitoring_is_rolled_back(tmp_path: Path):
    alone = Canary(tmp_path, "http://127.0.0.1:1")
    done = alone.run("rollout")
    assert done.returncode == 1
    assert alone.calls() == [WEIGHT.format(5), WEIGHT.format(0), SCALE]


def test_losing_prometheus_rolls_the_canary_back(canary: Canary):
    Prometheus.known = {"ttft": 0.5, "tpot": 0.5, "error_ratio": "what?"}  # type: ignore[dict-item]
    done = canary.run("rollout")
    assert (done.returncode, done.stderr) == (1, "")
    assert canary.calls() == [WEIGHT.format(5), WEIGHT.format(0), SCALE]


def test_without_a_cluster_it_says_so(canary: Canary, tmp_path: Path):
    (tmp_path / "kubectl").write_text("#!/bin/sh\nexit 1\n")
    done = canary.run("rollback")
    assert (done.returncode, done.stderr) == (1, "")
    assert "keeps its present share" in done.stdout


def test_a_rollback_takes_the_traffic_away_first(canary: Canary):
    Prometheus.known["in_flight"] = 3
    began = time.monotonic()
    assert canary.run("rollback").returncode == 0
    assert time.monotonic() - began < 60
    assert canary.calls() == [WEIGHT.format(0), SCALE]


def test_a_check_prints_what_is_known(canary: Canary):
    good = canary.run("check")
    assert (good.returncode, "errors: 0.0000" in good.stdout) == (0, True)
    Prometheus.known["error_ratio"] = 0.02
    assert canary.run("check").returncode == 1


def test_the_names_are_those_of_the_overlay():
    manifests = overlay("canary")
    assert "baton-canary" in of_kind(manifests, "Ingress")
    assert {"router-canary", "prefill-canary", "decode-canary"} <= of_kind(manifests, "Deployment").keys()
