"""Two routers on one port, before nodes that compute nothing: one is killed under load."""

import contextlib
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from tests.conftest import free_port

NUM_CLIENTS = 8
NUM_TOKENS = 20
BODY = json.dumps({"model": "m", "prompt": [1, 1, 1], "max_tokens": NUM_TOKENS, "stream": True})


@contextlib.contextmanager
def started(*command: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that has said that it is ready."""
    process = subprocess.Popen([sys.executable, "-m", *map(str, command)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready")
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def fleet(redis_url: str, tmp_path: Path) -> Iterator[SimpleNamespace]:
    """Two routers, and the port that they share."""
    Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text('{"vocab_size": 2, "max_position_embeddings": 64, "eos_token_id": 0}')
    port = free_port()
    flags = ("--model", tmp_path, "--served-model-name", "m", "--port", port, "--redis-url", redis_url)
    os.environ.pop("BATON_API_KEY", None)
    with started("bench._router.nodes", redis_url), started("router", *flags) as one, started("router", *flags) as two:
        deadline = time.monotonic() + 10
        ready = 0
        while ready < 20:  # connections are spread over both
            assert time.monotonic() < deadline
            ready = ready + 1 if is_ready(port) else 0
        yield SimpleNamespace(port=port, victim=one, survivor=two)


def is_ready(port: int) -> bool:
    """What `/ready` says on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/ready")
    status = connection.getresponse().status
    connection.close()
    return status == 200


def ask(port: int) -> bool:
    """One streamed completion on a connection of its own; whether it came whole."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("POST", "/v1/completions", BODY, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return answer.status == 200 and text.endswith(b"data: [DONE]\n\n") and text.count(b'"text"') >= NUM_TOKENS


def test_clients_of_a_killed_router_succeed_when_they_ask_again(fleet: SimpleNamespace) -> None:
    ended, asked, broken, lost = threading.Event(), [], [], []

    def client() -> None:
        while not ended.is_set():
            began = time.monotonic()
            asked.append(began)
            if not ask(fleet.port):
                broken.append(began)
                time.sleep(0.1)  # as clients do; the kernel may still be closing what the router had open
                if not ask(fleet.port):
                    lost.append(began)

    clients = [threading.Thread(target=client) for _ in range(NUM_CLIENTS)]
    for each in clients:
        each.start()
    wait_for(lambda: len(asked) >= 3 * NUM_CLIENTS)  # under load
    fleet.victim.kill()
    fleet.victim.wait(10)
    killed = time.monotonic()
    wait_for(lambda: sum(began > killed for began in asked) >= NUM_CLIENTS)
    ended.set()
    for each in clients:
        each.join(20)
    assert fleet.survivor.poll() is None
    assert not lost, (lost, killed)
    assert len(broken) <= NUM_CLIENTS  # those whose router it was, each once
    assert all(began < killed for began in broken)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
