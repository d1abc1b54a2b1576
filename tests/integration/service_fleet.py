"""A router, a prefill node and two decode nodes as processes, each started by its own command."""

import contextlib
import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

_FIRST_TWO_TRANSFERS = "hold_message:1,hold_commit:1"


class Service:
    """One process."""

    def __init__(self, module: str, *flags: str, **env: str) -> None:
        command = [sys.executable, "-m", module, *flags]
        self._log = tempfile.TemporaryFile("w+b")  # noqa: SIM115 - as long as the process
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._log, text=True, env=os.environ | env
        )
        self.facts: dict[str, Any] = {}

    def wait_ready(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("ready "):
                self.facts = json.loads(line.removeprefix("ready "))
                return
        raise AssertionError(f"exit code {self.process.wait()}")

    def said(self, words: str) -> bool:
        return words in self.log()

    def log(self) -> str:
        return os.pread(self._log.fileno(), 2**20, 0).decode(errors="replace")

    def metric(self, pattern: str) -> float:
        with urllib.request.urlopen(self.facts.get("metrics") or self.facts["metrics_url"], timeout=5) as page:
            found = re.findall(rf"^{pattern}(?:\{{[^}}]*\}})? (\S+)$", page.read().decode(), re.MULTILINE)
        assert found, pattern
        return sum(map(float, found))

    def held(self) -> float:
        return self.metric(r'baton_kv_blocks\{[^}]*state="(?:running|leased)"[^}]*\}')

    def busy(self) -> float:
        return self.metric("baton_requests_running") + self.metric("baton_requests_waiting")


class Fleet:
    """All of them."""

    def __init__(self, model: Path, redis_url: str) -> None:
        node = ("--model", str(model), "--num-threads", "1", "--kv-memory", "64MiB", "--max-num-batched-tokens", "128")
        env = {"BATON_REDIS_URL": redis_url, "OMP_NUM_THREADS": "1"}
        self.prefill = Service("prefill_node", *node, BATON_FAULTS=_FIRST_TWO_TRANSFERS, **env)
        self.decodes = [Service("decode_node", *node, **env) for _ in range(2)]
        self.router = Service("router", "--model", str(model), "--port", "0", **env)
        self.model = model.name

    @property
    def nodes(self) -> list[Service]:
        return [self.prefill, *(node for node in self.decodes if node.process.poll() is None)]

    def wait_ready(self) -> None:
        for service in (*self.nodes, self.router):
            service.wait_ready()
        self.until(lambda: self.status() == 200, 20)
        known = r'baton_router_nodes{.*state="ready".*}'  # else the first requests stay on the decode node found first
        self.until(lambda: self.router.metric(known) == len(self.nodes), 20)

    def status(self) -> int:
        try:
            with urllib.request.urlopen(f"http://{self.router.facts['address']}/ready", timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    def post(self, path: str, **body: Any) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(self.router.facts["address"], timeout=60)
        data = json.dumps({"model": self.model, "temperature": 0} | body)
        connection.request("POST", path, data, {"Content-Type": "application/json"})
        return connection

    def answer(self, path: str, **body: Any) -> Any:
        with contextlib.closing(self.post(path, **body)) as connection:
            response = connection.getresponse()
            answer = json.loads(response.read())
        assert response.status == 200, answer
        return answer

    def until(self, done: Callable[[], bool], timeout_s: float) -> float:
        began = time.monotonic()
        while not done():
            assert time.monotonic() - began < timeout_s
            time.sleep(0.02)
        return time.monotonic() - began

    def end(self) -> None:
        for service in (self.prefill, *self.decodes, self.router):
            service.process.kill()
            service.process.wait()
            print(service.log())  # which pytest shows where a test failed
