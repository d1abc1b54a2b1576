"""A fleet as `baton up` starts it, in a BATON_HOME of its own; clients that ask it, and ask on."""

import concurrent.futures
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil

from fleet import state
from fleet.home import Home

START_TIMEOUT_S = 100


QUESTION = "Tell me, in so many words, what a baton is passed on for. " * 4


class LocalFleet:
    """One BATON_HOME and what runs in it."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.home, self.model = folder / "home", model
        own = {"BATON_HOME": str(self.home), "NO_COLOR": "1"}
        self.welcome = ""
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("BATON_")} | own

    def baton(self, *args: str, stdin: str = "", timeout: float = START_TIMEOUT_S) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "fleet", *args]
        return subprocess.run(argv, env=self.env, input=stdin, capture_output=True, text=True, timeout=timeout)

    def up(self, *args: str) -> subprocess.CompletedProcess[str]:
        flags = ("--model", str(self.model), "--port", "0", "--kv-memory", "32MiB", "--detach")
        return self.baton("up", *flags, *args)

    def status(self) -> dict[str, Any]:
        done = self.baton("status", "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    @property
    def endpoint(self) -> str:
        return state.running(Home(self.home)).endpoint

    def nodes(self) -> dict[str, state.ProcessState]:
        """As the supervisor sees them. `baton status` would take a core each time that a node needs to start."""
        return {one.id: one for one in state.running(Home(self.home)).processes if one.role != "redis"}

    def processes(self) -> list[psutil.Process]:
        supervisor = psutil.Process(state.running(Home(self.home)).pid)
        return [supervisor, *supervisor.children(recursive=True)]

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.endpoint + "/v1", api_key="none", max_retries=0, timeout=60)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return httpx.post(self.endpoint + path, json={"model": self.model.name, **body}, timeout=60)

    def logs(self) -> str:
        return "\n".join(f"== {path.name}\n{path.read_text()[-2000:]}" for path in (self.home / "logs").iterdir())


def started(folder: Path, model: Path, *args: str) -> LocalFleet:
    fleet = LocalFleet(folder, model)
    up = fleet.up(*args)
    assert up.returncode == 0, up.stdout + up.stderr + fleet.logs()
    fleet.welcome = up.stdout
    return fleet


def ask(client: openai.OpenAI, text: str = QUESTION, max_tokens: int = 24) -> str:
    reply = client.chat.completions.create(
        model="random-llama", messages=[{"role": "user", "content": text}], temperature=0, max_tokens=max_tokens
    )
    return reply.choices[0].message.content or ""


def until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


class Load:
    """Clients that ask one question after the other until told to stop; their failures and answers."""

    def __init__(self, fleet: LocalFleet, num_clients: int = 4) -> None:
        self._client, self._stop = fleet.client(), threading.Event()
        self._pool = concurrent.futures.ThreadPoolExecutor(num_clients)
        self.answers: list[tuple[str, str]] = []
        self._workers = [self._pool.submit(self._ask_on, i) for i in range(num_clients)]

    def _ask_on(self, client: int) -> None:
        turn = 0
        while not self._stop.is_set():
            text = f"client {client}, question {turn % 3}: {QUESTION}"
            self.answers.append((text, ask(self._client, text)))
            turn += 1

    def more(self, num_answers: int) -> None:
        """Wait for as many further answers."""
        enough = len(self.answers) + num_answers
        until(lambda: len(self.answers) >= enough or any(worker.done() for worker in self._workers))

    def end(self) -> None:
        """Raises what any client met."""
        self._stop.set()
        for worker in self._workers:
            worker.result(timeout=60)
        self._pool.shutdown()
