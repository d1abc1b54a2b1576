"""A router, a prefill node and two decode nodes as processes; the test is a client that leaves, or that comes again."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine import random_checkpoint

pytestmark = pytest.mark.timeout(120)

BLOCK = 16
_SIZE = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 8, "max_position_embeddings": 4096}
_FIRST_TWO_TRANSFERS = "hold_message:1,hold_commit:1"
_WORDS = "The baton goes from one runner to the next. "


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


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, _shared_redis: Any) -> Iterator[Fleet]:
    model = random_checkpoint.write(tmp_path_factory.mktemp("model") / "tiny", random_checkpoint.TINY | _SIZE)
    made = Fleet(model, str(_shared_redis.url))
    try:
        made.wait_ready()
        yield made
    finally:
        made.end()


def first_event(connection: http.client.HTTPConnection) -> None:
    response = connection.getresponse()
    while not (line := response.readline()).startswith(b"data:"):
        assert line, "the stream ended"
    threading.Thread(target=read_on, args=(response,), daemon=True).start()


def read_on(response: http.client.HTTPResponse) -> None:
    """As a client does that keeps up: else its request is paused."""
    with contextlib.suppress(OSError, http.client.HTTPException, ValueError, AttributeError):  # closed meanwhile
        while response.read1(65536):
            pass


def leave(fleet: Fleet, connection: http.client.HTTPConnection, phase: str) -> None:
    """Hang up, and see both legs end: no work after 1 s, no blocks after 2 s, and later where a machine is busy."""
    assert any(node.busy() or node.held() for node in fleet.nodes) or phase == "queued"
    if connection.sock is not None:
        connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    fleet.until(lambda: not any(node.busy() for node in fleet.nodes), 3.0)  # unless told, they would be busy for longer
    fleet.until(lambda: not any(node.held() for node in fleet.nodes), 3.0)
    steps = [node.metric("baton_steps_total") for node in fleet.nodes]
    time.sleep(0.1)
    assert steps == [node.metric("baton_steps_total") for node in fleet.nodes], f"steps after {phase}"


LONG = {"stream": True, "max_tokens": 2000, "ignore_eos": True}


def held(fleet: Fleet, fault: str) -> http.client.HTTPConnection:
    """A request whose transfer the prefill node holds; one that needs none, by the choice of the router, is dropped."""
    for number in range(1, 8):
        connection = fleet.post("/v1/completions", prompt=f"{number} {fault}: {_WORDS * 8 * number}", **LONG)
        first_event(connection)
        running, until_s = False, time.monotonic() + 5.0
        while not running and not fleet.prefill.said(f"fault {fault} happens"):
            running = any(node.metric("baton_requests_running") for node in fleet.decodes)
            running |= time.monotonic() > until_s  # it has ended before anybody looked
        if not running:
            return connection
        if connection.sock is not None:
            connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()
        fleet.until(lambda: not any(node.busy() for node in fleet.nodes), 5)
    raise AssertionError("no request was shipped")


def test_a_client_that_leaves_ends_both_legs_in_every_phase(fleet: Fleet) -> None:
    for phase, fault in (("transferring", "hold_message"), ("committing", "hold_commit")):
        connection = held(fleet, fault)
        assert not any(node.metric("baton_requests_running") for node in fleet.decodes)
        leave(fleet, connection, phase)
    connection = fleet.post("/v1/completions", prompt=f"decoding: {_WORDS}", **LONG)
    first_event(connection)
    fleet.until(lambda: any(node.metric("baton_requests_running") for node in fleet.decodes), 5)
    leave(fleet, connection, "decoding")
    connection = fleet.post("/v1/completions", prompt=f"prefilling: {_WORDS * 80}", **LONG | {"max_tokens": 500})
    fleet.until(lambda: any(node.metric("baton_requests_running") for node in fleet.nodes), 5)
    leave(fleet, connection, "prefilling")


def test_a_client_that_reads_nothing_holds_nothing(fleet: Fleet) -> None:
    pauses = fleet.router.metric("baton_router_pauses_total")
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        host, _, port = fleet.router.facts["address"].partition(":")
        slow.connect((host, int(port)))
        body = {"model": fleet.model, "prompt": "slow", "max_tokens": 3000, "stream": True, "ignore_eos": True}
        data = json.dumps(body | {"logprobs": 5}).encode()
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        slow.sendall(b"Content-Length: %d\r\n\r\n" % len(data) + data)
        fleet.until(lambda: fleet.router.metric("baton_router_pauses_total") > pauses, 15)
        fleet.until(lambda: not any(node.busy() for node in fleet.nodes), 1.5)
        fleet.until(lambda: not any(node.held() for node in fleet.nodes), 4.0)
    fleet.until(lambda: fleet.router.metric("baton_router_requests_in_flight") == 0, 2.0)


def test_a_client_that_leaves_while_the_router_waits_for_a_node(fleet: Fleet) -> None:
    fleet.prefill.process.send_signal(signal.SIGSTOP)
    try:
        fleet.until(lambda: fleet.status() == 503, 5)
        connection = fleet.post("/v1/completions", prompt="queued", **LONG)
        waiting = "baton_router_requests_in_flight"
        fleet.until(lambda: fleet.router.metric(waiting) == 1, 5)
        connection.close()
        fleet.until(lambda: fleet.router.metric(waiting) == 0, 3)
    finally:
        fleet.prefill.process.send_signal(signal.SIGCONT)
    fleet.until(lambda: fleet.status() == 200, 10)
    leave(fleet, connection, "queued")


def test_the_next_turns_compute_only_what_is_new_whoever_dies(fleet: Fleet) -> None:
    said: list[dict[str, str]] = []
    first = known = 0  # tokens of the first turn, which both nodes hold; of the turn before, which a decode node does
    for turn, question in enumerate((_WORDS * 3, "And then? ", "And what became of it in the end? " * 3)):
        said.append({"role": "user", "content": question})
        asked = {"messages": said, "max_tokens": 40, "structured_outputs": {"regex": "[a-z]{36}"}}
        answer = fleet.answer("/v1/chat/completions", **asked)
        usage = answer["usage"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        assert first - BLOCK < cached <= known, f"turn {turn}"
        assert cached % BLOCK == 0
        first, known = first or usage["prompt_tokens"], usage["prompt_tokens"] + usage["completion_tokens"]
        said.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"]})
    said.append({"role": "user", "content": "Once more, please."})
    asked = {"messages": said, "max_tokens": 40}
    before = fleet.answer("/v1/chat/completions", **asked)
    holder = max(fleet.decodes, key=lambda node: node.metric("baton_prefix_cache_hit_tokens_total"))
    holder.process.kill()
    holder.process.wait()
    after = fleet.answer("/v1/chat/completions", **asked)
    assert after["choices"] == before["choices"]
    assert after["usage"]["prompt_tokens"] == before["usage"]["prompt_tokens"]
    assert after["usage"]["prompt_tokens_details"]["cached_tokens"] <= before["usage"]["prompt_tokens"]
