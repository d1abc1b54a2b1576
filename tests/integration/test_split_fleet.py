"""A router, a prefill node and two decode nodes as processes; the test is a client that leaves, or that comes again."""

import contextlib
import http.client
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from engine import random_checkpoint
from tests.integration.service_fleet import Fleet

pytestmark = pytest.mark.timeout(120)

BLOCK = 16
_SIZE = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 8, "max_position_embeddings": 4096}
_WORDS = "The baton goes from one runner to the next. "


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


def test_later_turns_compute_only_what_is_new_even_after_a_node_died(fleet: Fleet) -> None:
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
