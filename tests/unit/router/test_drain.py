"""A draining router: running requests finish, and clients that have connected get an answer."""

import asyncio
import json
import socket

import pytest

from baton.request import FinishReason
from tests.unit.router.chats import CHAT, CHAT_PATH, STREAM, one_token_then_wait
from tests.waiting import until

pytestmark = pytest.mark.anyio


async def test_a_drain_says_not_ready_and_lets_streams_finish(router, dispatch):
    release = asyncio.Event()

    async def wait(job, sink, handle):
        sink.on_tokens([300], None)
        await release.wait()
        sink.on_finish(FinishReason.LENGTH, handle.usage)

    dispatch.script = wait
    stream = asyncio.create_task(router.client.post(CHAT_PATH, json=STREAM))
    await until(lambda: dispatch.handles)
    assert (await router.client.get("/ready")).status_code == 200
    router.shutdown.request()
    await until(lambda: router.app.draining)
    ready = await router.client.get("/ready")
    assert ready.status_code == 503
    assert ready.headers["connection"] == "close"
    await asyncio.sleep(0.7)  # the port is closed by now
    assert not router.task.done()
    release.set()
    assert "[DONE]" in (await stream).text
    async with asyncio.timeout(10):
        await router.task


async def test_a_drain_ends(make_app, serve, dispatch):
    dispatch.script = one_token_then_wait
    async with serve(make_app(), drain_timeout_s=0.2) as router:
        stream = asyncio.create_task(router.client.post(CHAT_PATH, json=STREAM))
        await until(lambda: dispatch.handles)
        router.shutdown.request()
        async with asyncio.timeout(5):
            answer = await stream
            await router.task
    assert "shutting down" in answer.text
    assert "[DONE]" not in answer.text
    assert dispatch.handles[0].cancelled.is_set()


async def test_a_second_signal_ends_streams_with_an_event_and_requests_with_a_503(make_app, serve, dispatch):
    dispatch.script = one_token_then_wait
    async with serve(make_app(), drain_timeout_s=30) as router:
        stream = asyncio.create_task(router.client.post(CHAT_PATH, json=STREAM))
        whole = asyncio.create_task(router.client.post(CHAT_PATH, json=CHAT))
        await until(lambda: len(dispatch.handles) == 2)
        router.shutdown.request()
        await until(lambda: router.app.draining)
        router.task.cancel()  # what a second signal does
        async with asyncio.timeout(5):
            broken_off, refused = await asyncio.gather(stream, whole)
            await asyncio.wait([router.task])
    *_, event, end = broken_off.text.split("\n\n")
    assert (json.loads(event.removeprefix("data: "))["error"]["code"], end) == ("no_capacity", "")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")


async def test_nobody_who_has_connected_is_turned_away_by_a_drain(make_app, serve):
    """One client asks late, others wait to be accepted while the loop is busy shutting down. All get an answer."""
    async with serve(make_app()) as router:
        late = await asyncio.open_connection("127.0.0.1", router.port)
        waiting = []

        def connect():  # within the turn that closes the port, so the loop cannot accept them
            waiting.extend(socket.create_connection(("127.0.0.1", router.port)) for _ in range(8))

        closing = router.http._server.shutdown
        router.http._server.shutdown = lambda sockets: (connect(), closing(sockets))[1]
        router.shutdown.request()
        await until(lambda: waiting)
        others = [await asyncio.open_connection(sock=connection) for connection in waiting]
        for reader, writer in (late, *others):
            writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            async with asyncio.timeout(5):
                answer = (await reader.read()).lower()
            assert answer.startswith(b"http/1.1 200")
            assert b"connection: close" in answer
            writer.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", router.port)
        async with asyncio.timeout(10):
            await router.task
