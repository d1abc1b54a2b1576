"""What a stream does when something goes wrong: errors, clients that leave, clients that do not read."""

import asyncio
import contextlib
import gc
import json
import socket
import struct

import pytest
from prometheus_client import REGISTRY

from baton.errors import BatonError, DeadlineExceeded, NoCapacity, Overloaded
from baton.request import FinishReason
from router.http import sender
from router.http.exchange import Exchange
from router.openai.answer import Answer, StreamedAnswer, WholeAnswer
from router.openai.choice import Choice
from router.openai.generate import Generator
from tests.unit.router.chats import CHAT, CHAT_PATH, STREAM, one_token_then_wait
from tests.waiting import until

pytestmark = pytest.mark.anyio


def metric(name, **labels):
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def connect(router, body, rcvbuf=None):
    connection = socket.socket()
    if rcvbuf:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", router.port))
    data = json.dumps(body).encode()
    head = (
        f"POST {CHAT_PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    await asyncio.get_running_loop().sock_sendall(connection, head.encode() + data)
    return connection


@pytest.mark.parametrize("error", [Overloaded("full"), NoCapacity("none"), DeadlineExceeded("late"), BatonError("?")])
@pytest.mark.parametrize("body", [CHAT, STREAM])
async def test_an_error_before_the_first_token_is_an_http_error(router, dispatch, body, error):
    async def fail(job, sink, handle):
        sink.on_error(error)

    dispatch.script = fail
    answer = await router.client.post(CHAT_PATH, json=body)
    assert answer.status_code == error.status
    assert answer.json()["error"] == {"message": error.message, "type": error.type, "param": None, "code": error.code}
    assert ("retry-after" in answer.headers) == (error.status in (429, 503))
    assert answer.headers["x-request-id"]


async def test_a_refused_submission_is_an_http_error_and_cancels_the_others(router, dispatch):
    submit, handles = dispatch.submit, dispatch.handles

    def refuse_the_third(job, sink):
        if len(handles) == 2:
            raise Overloaded("full")
        return submit(job, sink)

    dispatch.submit = refuse_the_third
    answer = await router.client.post(CHAT_PATH, json={**CHAT, "n": 3})
    assert answer.status_code == 429
    assert all(handle.cancelled.is_set() for handle in handles)


async def test_an_error_in_a_stream_is_one_event_and_no_done(router, dispatch):
    async def fail_later(job, sink, handle):
        sink.on_tokens([300], None)
        await asyncio.sleep(0)
        if len(dispatch.jobs) == 2 and job is dispatch.jobs[0]:
            sink.on_error(NoCapacity("lost"))

    dispatch.script = fail_later
    answer = await router.client.post(CHAT_PATH, json={**STREAM, "n": 2})
    assert answer.status_code == 200
    events = [line for line in answer.text.split("\n\n") if line]
    assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "no_capacity"
    assert sum('"error"' in event for event in events) == 1
    assert "[DONE]" not in answer.text
    assert all(handle.cancelled.is_set() for handle in dispatch.handles)


@pytest.mark.parametrize("reason", [FinishReason.ABORT, FinishReason.ERROR])
async def test_an_output_that_was_given_up_is_an_error(router, dispatch, reason):
    async def give_up(job, sink, handle):
        sink.on_finish(reason, handle.usage)

    dispatch.script = give_up
    assert (await router.client.post(CHAT_PATH, json=CHAT)).status_code == 500


async def test_a_broken_output_fails_its_own_request_only(router, dispatch, monkeypatch, caplog):
    async def nonsense(job, sink, handle):
        sink.on_tokens(["no token"], None)

    dispatch.script = nonsense
    answer = await router.client.post(CHAT_PATH, json=CHAT)
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "internal error"
    dispatch.script = dispatch.say
    assert (await router.client.post(CHAT_PATH, json=CHAT)).status_code == 200


@pytest.mark.parametrize("body", [CHAT, STREAM])
async def test_an_answer_whose_end_cannot_be_made_fails(router, dispatch, monkeypatch, body):
    monkeypatch.setattr(Answer, "counts", lambda self: 1 / 0)
    monkeypatch.setattr(Generator, "_record", lambda *args: None)
    async with asyncio.timeout(5):
        answer = await router.client.post(CHAT_PATH, json=body)
    assert "internal error" in answer.text
    assert "[DONE]" not in answer.text


async def test_an_empty_output_is_an_answer(router, dispatch):
    async def say_nothing(job, sink, handle):
        sink.on_tokens([dispatch.eos], None)
        sink.on_finish(FinishReason.STOP, handle.usage)

    dispatch.script = say_nothing
    assert (await router.client.post(CHAT_PATH, json=CHAT)).json()["choices"][0]["message"]["content"] == ""
    lines = (await router.client.post(CHAT_PATH, json=STREAM)).text.split("\n\n")
    assert '"role":"assistant"' in lines[0]
    assert '"finish_reason":"stop"' in lines[1]
    assert lines[2] == "data: [DONE]"


@pytest.mark.parametrize("body", [CHAT, STREAM, {**STREAM, "n": 3}])
@pytest.mark.parametrize("how", ["reset", "close", "half-close"])
async def test_a_client_that_leaves_cancels_at_once(router, dispatch, body, how):
    dispatch.script = one_token_then_wait
    left = metric("baton_requests_total", model="tiny", status="499")
    connection = await connect(router, body)
    await until(lambda: len(dispatch.handles) == body.get("n", 1))
    if how == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if how == "half-close":
        connection.shutdown(socket.SHUT_WR)
    else:
        connection.close()
    async with asyncio.timeout(10):
        await asyncio.gather(*(handle.cancelled.wait() for handle in dispatch.handles))
    await until(lambda: metric("baton_requests_total", model="tiny", status="499") == left + 1)
    connection.close()


async def flood(job, sink, handle):
    for _ in range(200):
        await asyncio.sleep(0)
        sink.on_tokens([300] * 2000, None)
    sink.on_finish(FinishReason.LENGTH, handle.usage)


async def test_a_slow_reader_gets_everything_in_the_end(router, dispatch, monkeypatch):
    monkeypatch.setattr(sender, "MAX_BACKLOG_BYTES", 2**30)
    dispatch.script = flood
    connection = await connect(router, STREAM, rcvbuf=4096)
    await until(lambda: dispatch.handles and dispatch.handles[0].task.done())
    received = b""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(10):
        while b"[DONE]" not in received:
            received += await loop.sock_recv(connection, 2**16)
    connection.close()
    unit = len(dispatch.model.token_texts.token_bytes(300))
    texts = [json.loads(line[6:])["choices"][0]["delta"].get("content", "") for line in _events(received)]
    assert len("".join(texts).encode()) == 400_000 * unit


def _events(received):
    """Return the JSON events in a chunked body."""
    body, rest = b"", received.partition(b"\r\n\r\n")[2]
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        if size == b"0":
            break
    return [line for line in body.decode().split("\n\n") if line.startswith("data: {")]


@pytest.mark.parametrize("limit", [("MAX_BACKLOG_BYTES", 100_000), ("STALL_TIMEOUT_S", 0.2)])
async def test_a_client_that_does_not_read_is_given_up(router, dispatch, monkeypatch, limit):
    monkeypatch.setattr(sender, "MAX_BACKLOG_BYTES", 2**30)
    monkeypatch.setattr(sender, *limit)

    async def flood_then_wait(job, sink, handle):
        with contextlib.suppress(asyncio.CancelledError):
            for _ in range(200):
                await asyncio.sleep(0)
                sink.on_tokens([300] * 20_000, None)
            await asyncio.Event().wait()

    dispatch.script = flood_then_wait
    connection = await connect(router, STREAM, rcvbuf=4096)
    await until(lambda: dispatch.handles)
    async with asyncio.timeout(5):
        await dispatch.handles[0].cancelled.wait()
        dispatch.script = dispatch.say
        assert (await router.client.post(CHAT_PATH, json=CHAT)).status_code == 200
    connection.close()


async def test_metrics_of_a_request(router, dispatch):
    before = {
        n: metric(n) for n in ("baton_router_generation_tokens_total", "baton_router_prefix_cache_hit_tokens_total")
    }
    count, first = metric("baton_request_seconds_count"), metric("baton_time_to_first_token_seconds_count")
    await router.client.post(CHAT_PATH, json=STREAM)
    await until(lambda: metric("baton_request_seconds_count") > count)
    assert (
        metric("baton_router_generation_tokens_total")
        == before["baton_router_generation_tokens_total"] + len(dispatch.reply) + 1
    )
    assert (
        metric("baton_router_prefix_cache_hit_tokens_total") == before["baton_router_prefix_cache_hit_tokens_total"] + 3
    )
    assert metric("baton_request_phase_seconds_count", phase="queue") > 0
    assert metric("baton_time_to_first_token_seconds_count") == first + 1
    assert metric("baton_time_per_output_token_seconds_count") > 0
    assert "baton_requests_total" in (await router.client.get("/metrics")).text


@pytest.mark.parametrize("body", [CHAT, STREAM, {**STREAM, "n": 2, "logprobs": True}, {**CHAT, "max_tokens": 1}])
async def test_nothing_of_an_answered_request_waits_for_the_garbage_collector(router, dispatch, body):
    kinds = {Exchange, StreamedAnswer, WholeAnswer, Choice}

    def left():
        return {id(found) for found in gc.get_objects() if type(found) in kinds}

    gc.collect()
    gc.disable()
    before = left()
    try:
        assert (await router.client.post(CHAT_PATH, json=body)).status_code == 200
        dispatch.handles.clear()
        await until(lambda: left() <= before)
    finally:
        gc.enable()
