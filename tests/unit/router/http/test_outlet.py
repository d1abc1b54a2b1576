"""Answers on the wire: framing by version and method, and what is sent in one write."""

import asyncio
import itertools
import json
import socket
import struct
from types import SimpleNamespace

import pytest

from router.http.outlet import Gate, Outlet

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request):
    """Use uvloop as a router does: its transports treat a write after their end as an error."""
    return "asyncio", {"use_uvloop": request.param}


CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "stream": True}
COMPLETION = {"model": "tiny", "prompt": "hello", "stream": True}


def request(body, version="1.1", **headers):
    data = json.dumps(body).encode()
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    named = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"POST {path} HTTP/{version}\r\nHost: x\r\nX-Request-Id: me\r\n{named}Content-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


async def talk(router, data, until=None):
    """Send bytes; return what comes back, up to `until` or the end of the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    writer.write(data)
    async with asyncio.timeout(10):
        answer = await (reader.read() if until is None else reader.readuntil(until))
    writer.close()
    return answer


def test_a_head_never_contains_a_line_break_of_a_value():
    cycle = type("Cycle", (), {"default_headers": [], "scope": {"method": "GET", "http_version": "1.1"}})()
    cycle.flow = cycle.keep_alive = None
    cycle.transport = type("Transport", (), {"abort": None})()
    with pytest.raises(ValueError, match="line break"):
        Outlet(cycle, Gate()).start(200, [(b"a", b"b\r\nc: d")])


def made(**fields):
    """An outlet, its gate, what it writes, and its cycle."""
    written, gate = [], Gate()
    scope = {"method": "GET", "http_version": "1.1"}
    transport = SimpleNamespace(abort=None, write=written.append)
    cycle = {"default_headers": [], "scope": scope, "flow": None, "keep_alive": True, "transport": transport}
    cycle |= {"disconnected": False, "response_complete": False, "on_response": lambda: None}
    cycle = SimpleNamespace(**cycle | {"message_event": SimpleNamespace(set=lambda: None)} | fields)
    return Outlet(cycle, gate), gate, written, cycle


def test_an_inserted_text_is_a_chunk_unless_the_client_is_behind_or_the_outlet_held():
    outlet, gate, written, _ = made()
    assert outlet.inserter(b"", b"") is None  # no head has said that there are chunks
    outlet.start(200, [])
    insert = outlet.inserter(b"<", b">")
    for size in (0, 1, 1021, 1022, 1023, 70_000):
        assert insert(b"x" * size)
        assert written.pop() == b"%x\r\n<%b>\r\n" % (size + 2, b"x" * size)
    gate.set("full", shut=True)
    outlet.hold(True)
    gate.set("full", shut=False)
    assert not insert(b"x")
    outlet.hold(False)
    outlet.hold(False)
    assert insert(b"x")
    assert len(written) == 1


def test_nothing_follows_an_answer_that_is_complete():
    outlet, _, written, cycle = made()
    outlet.start(200, [])
    outlet.write(b"a", more=False)
    with pytest.raises(RuntimeError, match="complete"):
        outlet.write(b"b", more=False)
    cycle.disconnected = True
    outlet.write(b"c", more=False)
    assert b"".join(written).endswith(b"\r\n\r\n1\r\na\r\n0\r\n\r\n")


async def test_only_a_connected_client_that_is_behind_is_waited_for():
    waited = []

    async def drain():
        waited.append((paused, gone))

    for paused, gone in ((False, False), (False, True), (True, True), (True, False)):
        outlet, *_ = made(flow=SimpleNamespace(write_paused=paused, drain=drain), disconnected=gone)
        assert outlet.is_full == (paused and not gone)
        await outlet.room()
    assert waited == [(True, False)]


async def test_a_stream_over_http_1_0_ends_with_the_connection(router):
    head, _, body = (await talk(router, request(CHAT, "1.0"))).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head
    assert body.startswith(b"data: {")
    assert body.endswith(b"data: [DONE]\n\n")


async def test_a_connection_takes_one_request_after_the_other(router):
    last = request({**CHAT, "stream": False}, Connection="close")
    answer = await talk(router, request(CHAT) + request(COMPLETION) + last)
    assert answer.count(b"HTTP/1.1 200 OK\r\n") == 3
    assert answer.count(b"transfer-encoding: chunked\r\n") == answer.count(b"\r\n0\r\n\r\n") == 2
    head, _, body = answer.rpartition(b"\r\n\r\n")
    assert f"content-length: {len(body)}\r\n".encode() in head + b"\r\n"


async def test_a_head_request_gets_the_length_and_no_body(router):
    answer = await talk(router, b"HEAD /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.endswith(b"\r\n\r\n")
    assert b"content-length: 15\r\n" in answer


async def test_head_opening_and_first_text_are_one_write(router, dispatch):
    async def say_one(job, sink, handle):
        sink.on_tokens([dispatch.reply[0]], None)
        await asyncio.Event().wait()

    dispatch.script = say_one
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    writer.write(request(CHAT))
    async with asyncio.timeout(5):
        first = await reader.read(2**16)
    writer.close()
    assert first.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b'"role":"assistant"' in first
    assert json.loads(first.split(b"data: ")[2])["choices"][0]["delta"]["content"]


async def test_the_head_is_sent_even_if_the_first_token_has_no_text(router, dispatch):
    async def say_nothing(job, sink, handle):
        sink.on_tokens([dispatch.eos], None)
        await asyncio.Event().wait()

    dispatch.script = say_nothing
    assert b'"role":"assistant"' in await talk(router, request(CHAT), until=b"\n\n")


@pytest.mark.parametrize("at_once", [1, 7])
async def test_a_client_that_resets_during_a_stream_disturbs_no_other(router, dispatch, caplog, at_once):
    async def say_on(job, sink, handle):
        for _ in itertools.count():
            for _ in range(at_once):  # also while nobody has been told yet that the connection is lost
                sink.on_tokens([dispatch.reply[0]], None)
            await asyncio.sleep(0)

    dispatch.script = say_on
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    writer.write(request(CHAT))
    await reader.readuntil(b"\n\n")
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()
    async with asyncio.timeout(5):
        await dispatch.handles[0].cancelled.wait()
    assert not [record for record in caplog.records if record.name != "asyncio"]
    dispatch.script = dispatch.say
    assert b"[DONE]" in await talk(router, request(CHAT), until=b"[DONE]")
