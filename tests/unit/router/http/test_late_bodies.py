"""Bodies that are late or never complete: how long a router waits for them, and how much of them it keeps."""

import asyncio
import json

import pytest

from router.http import exchange, protocol
from tests.waiting import until

pytestmark = pytest.mark.anyio

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
CHAT_PATH = "/v1/chat/completions"
PIECE = b"2710\r\n%b\r\n" % bytes(10_000)
POST = f"POST {CHAT_PATH} HTTP/1.1\r\nHost: x\r\n".encode()


async def talk(router, *parts, until_closed=True):
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    try:
        async with asyncio.timeout(5):
            for part in parts:
                writer.write(part)
                await asyncio.sleep(0.05)
            return await (reader.read() if until_closed else reader.read(4096))
    finally:
        writer.close()


async def test_a_slow_body_is_408(router, monkeypatch):
    monkeypatch.setattr(exchange, "_CHUNK_TIMEOUT_S", 0.1)
    answer = await talk(router, POST + b"Content-Length: 10\r\n\r\n{")
    assert b" 408 " in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"


async def test_a_body_that_trickles_has_a_total_time_limit(router, monkeypatch):
    monkeypatch.setattr(exchange, "_BODY_TIMEOUT_S", 0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    writer.write(POST + b"Content-Length: 100000\r\n\r\n")
    answer = asyncio.create_task(reader.read(4096))
    async with asyncio.timeout(10):
        while not answer.done():
            writer.write(b" ")
            await asyncio.sleep(0.01)
    assert b" 408 " in await answer
    writer.close()


async def test_a_body_without_end_is_refused_at_the_limit(router, monkeypatch):
    monkeypatch.setattr(exchange, "MAX_BODY_BYTES", 100_000)
    monkeypatch.setattr(exchange, "_MAX_SKIPPED_BYTES", 200_000)
    answer = await talk(router, POST + b"Transfer-Encoding: chunked\r\n\r\n" + PIECE * 40, PIECE, PIECE)
    assert b" 413 " in answer  # although the client went on sending after it
    assert b"connection: close" in answer


async def test_a_client_that_keeps_sending_after_its_answer_is_disconnected(router, monkeypatch):
    monkeypatch.setattr(exchange, "_MAX_SKIPPED_BYTES", 200_000)
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", 0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    writer.write(POST + b"Transfer-Encoding: chunked\r\n\r\n" + PIECE * 40)
    async with asyncio.timeout(5):
        assert b" 413 " in await reader.read()
        while not writer.transport.is_closing():
            writer.write(PIECE)
            await asyncio.sleep(0.01)


async def test_nothing_is_kept_of_a_body_that_becomes_too_large(router, monkeypatch):
    monkeypatch.setattr(exchange, "MAX_BODY_BYTES", 100_000)
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    writer.write(POST + b"Transfer-Encoding: chunked\r\n\r\n")
    for num_pieces, num_held in ((9, 90_000), (6, 0)):
        writer.write(PIECE * num_pieces)
        await until(lambda num_held=num_held: exchange._HELD.num_bytes == num_held)
    writer.write(b"0\r\n\r\n")
    async with asyncio.timeout(5):
        assert b" 413 " in await reader.read(4096)
    writer.close()


async def test_all_unfinished_bodies_together_are_bounded(router, monkeypatch):
    """Each alone could keep eight megabytes for a minute."""
    monkeypatch.setattr(exchange, "MAX_HELD_BYTES", 200_000)
    head = POST + b"Content-Length: 900000\r\n\r\n"
    first = asyncio.create_task(talk(router, head + b"a" * 250_000))
    await until(lambda: exchange._HELD.num_bytes == 250_000)
    refused = await talk(router, head + b"a" * 900_000, until_closed=False)
    assert b" 429 " in refused
    assert b"retry-after" in refused
    assert exchange._HELD.num_bytes == 250_000
    data = json.dumps(CHAT).encode()  # a complete body does not count
    head = POST + b"Content-Length: %d\r\n\r\n" % len(data)
    for parts in ([head + data], [head, data]):
        assert b" 200 " in await talk(router, *parts, until_closed=False)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await until(lambda: not exchange._HELD.num_bytes)
    assert (await router.client.post(CHAT_PATH, json=CHAT)).status_code == 200


async def test_a_body_that_lost_a_part_is_refused_even_if_there_is_room_again(router, monkeypatch):
    monkeypatch.setattr(exchange, "MAX_HELD_BYTES", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    writer.write(POST + b"Content-Length: 30\r\n\r\n")
    for num_held in (10, 0):
        writer.write(b'{"a": "b"}')
        await until(lambda num_held=num_held: exchange._HELD.num_bytes == num_held)
    writer.write(b'{"a": "b"}')
    async with asyncio.timeout(5):
        assert b" 429 " in await reader.read(4096)
    writer.close()
