"""A local fleet under load, and a real Prometheus that scrapes it, for tests of queries."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from engine import random_checkpoint
from tests.conftest import free_port
from tests.deploy.tools import DEPLOY, ROOT, program

START_TIMEOUT_S = 100
KEY, TOKEN = "key-of-the-test", "token-of-the-test"
PROMPT = "Tell me, in so many words, what a baton is passed on for. "


class Fleet:
    """`baton up` in its own BATON_HOME, with clients that send requests continuously."""

    def __init__(self, folder: Path, port: int) -> None:
        self.home, self.port = folder / "home", port
        self.model = random_checkpoint.write(folder / "mine")
        own = {"BATON_HOME": str(self.home), "NO_COLOR": "1", "BATON_API_KEY": KEY, "BATON_SERVICE_TOKEN": TOKEN}
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("BATON_")} | own
        self._stop = threading.Event()
        self._clients = [threading.Thread(target=self._ask_on, args=(i,), daemon=True) for i in range(3)]
        self.num_answers = 0

    def baton(self, *args: str) -> str:
        command = [sys.executable, "-m", "fleet", *args]
        done = subprocess.run(
            command, env=self.env, cwd=ROOT, capture_output=True, text=True, timeout=START_TIMEOUT_S, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self) -> None:
        self.baton("up", "--model", str(self.model), "--port", str(self.port), "--kv-memory", "32MiB", "--detach")
        for client in self._clients:
            client.start()

    def stop(self) -> None:
        self._stop.set()
        for client in self._clients:
            client.join(timeout=30)
        self.baton("down")

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.baton("status", "--json"))
        return found

    def _ask_on(self, number: int) -> None:
        while not self._stop.wait(0.05):  # so that the fleet is loaded, but not overloaded
            self.ask(f"client {number}, question {self.num_answers}: {PROMPT * 4}")
            self.num_answers += 1

    def ask(self, prompt: str) -> None:
        """Send one completion request."""
        with self._answer(prompt) as answer:
            answer.read()

    def request_id(self, prompt: str) -> str:
        """Send a request, and return the id by which the fleet knows it."""
        with self._answer(prompt) as answer:
            answer.read()
            return str(answer.headers["x-request-id"])

    def _answer(self, prompt: str) -> Any:
        content = {"model": "mine", "prompt": prompt, "max_tokens": 16, "temperature": 0}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/completions",
            json.dumps(content).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"},
        )
        return urllib.request.urlopen(request, timeout=60)


class Prometheus:
    """The configuration of deploy/prometheus, with shorter intervals."""

    def __init__(self, folder: Path, every: str = "500ms") -> None:
        self.folder, self.port = folder, free_port()
        shutil.copytree(DEPLOY / "prometheus", folder)
        (folder / "targets").mkdir()
        (folder / "secrets").mkdir()
        (folder / "secrets" / "service-token").write_text(TOKEN)
        config = folder / "prometheus.yml"
        config.write_text(config.read_text().replace("interval: 15s", f"interval: {every}"))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def target(self, fleet: Fleet) -> None:
        status = fleet.baton("status", "--json")
        made = subprocess.run(
            [sys.executable, str(self.folder / "file_sd.py")], input=status, capture_output=True, text=True, check=True
        )
        (self.folder / "targets" / "local.json").write_text(made.stdout)

    def start(self) -> None:
        command = [program("prometheus"), "--config.file=prometheus.yml", "--storage.tsdb.path=data"]
        command += [f"--web.listen-address=127.0.0.1:{self.port}", "--log.level=warn"]
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while not self._answers():
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=20)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the samples of an instant query."""
        path = f"{self.url}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(path, timeout=20) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
            return found

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False
