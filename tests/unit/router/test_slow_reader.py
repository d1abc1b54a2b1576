"""A client that reads slowly: the job pauses while it is behind, nothing is lost, and the router keeps little."""

import asyncio
import json
import socket

import pytest

from baton.request import FinishReason
from router.http import sender
from tests.waiting import until

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    """Use uvloop, as a router does."""
    return "asyncio", {"use_uvloop": True}


BODY = json.dumps({"model": "tiny", "prompt": "x", "max_tokens": 100_000, "stream": True}).encode()
HEAD = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()
NUM_TOKENS = 40_000


@pytest.fixture(autouse=True)
def unlimited(dispatch, served_model, monkeypatch):
    """Remove the limit on tokens."""
    dispatch.facts.max_model_len = 0
    monkeypatch.setattr(served_model, "facts", served_model.facts.__class__(1024, 0, frozenset({1})))


class Speaker:
    """Emits the same token as fast as allowed, and records how far ahead of its client it gets."""

    def __init__(self, dispatch):
        self.token = dispatch.reply[-1]
        self.num_pauses = self.num_said = 0

    async def say(self, job, sink, handle):
        while self.num_said < NUM_TOKENS:
            if not handle.wanted.is_set():
                self.num_pauses += 1
                await handle.wanted.wait()
            sink.on_tokens([self.token], None)
            self.num_said += 1
            if self.num_said % 8 == 0:
                await asyncio.sleep(0)
        sink.on_finish(FinishReason.LENGTH, handle.usage)


def connect(port):
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    sock.connect_ex(("127.0.0.1", port))
    return sock


async def test_the_job_pauses_and_nothing_is_lost(router, dispatch):
    speaker = Speaker(dispatch)
    dispatch.script = speaker.say
    sock, loop = connect(router.port), asyncio.get_running_loop()
    await loop.sock_sendall(sock, HEAD + BODY)
    await until(lambda: speaker.num_pauses)
    said = speaker.num_said
    await asyncio.sleep(0.05)
    assert speaker.num_said == said
    assert (await router.client.get("/health")).status_code == 200
    data = bytearray()
    async with asyncio.timeout(20):
        while chunk := await loop.sock_recv(sock, 65536):
            data += chunk
    sock.close()
    assert data.count(b'"text":"."') == NUM_TOKENS
    assert data.count(b"data: [DONE]") == 1
    assert said < 4000  # what it had made, of which the kernel held some


async def test_one_that_reads_nothing_is_given_up(router, dispatch, monkeypatch):
    monkeypatch.setattr(sender, "STALL_TIMEOUT_S", 0.3)
    speaker = Speaker(dispatch)
    dispatch.script = speaker.say
    sock = connect(router.port)
    await asyncio.get_running_loop().sock_sendall(sock, HEAD + BODY)
    await until(lambda: dispatch.handles and dispatch.handles[0].cancelled.is_set())
    assert speaker.num_said < NUM_TOKENS
    sock.close()
