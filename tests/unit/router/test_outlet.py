"""Answers on the wire: framing by version and method, and that tokens which go the short way make the same bytes."""

import asyncio
import json
import random
import re

import pytest

from baton.request import FinishReason
from router import chat, completions
from router.outlet import Outlet
from router.sender import Sender

pytestmark = pytest.mark.anyio

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "stream": True}
COMPLETION = {"model": "tiny", "prompt": "hello", "stream": True}


def request(body, version="1.1", **headers):
    data = json.dumps(body).encode()
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    named = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"POST {path} HTTP/{version}\r\nHost: x\r\nX-Request-Id: me\r\n{named}Content-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


async def talk(router, data, until=None):
    """What comes back, up to `until` or the end of the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    writer.write(data)
    async with asyncio.timeout(10):
        answer = await (reader.read() if until is None else reader.readuntil(until))
    writer.close()
    return answer


def test_a_line_break_never_gets_into_a_head():
    cycle = type("Cycle", (), {"default_headers": [], "scope": {"method": "GET", "http_version": "1.1"}})()
    cycle.flow = cycle.keep_alive = None
    cycle.transport = type("Transport", (), {"abort": None})()
    with pytest.raises(ValueError, match="line break"):
        Outlet(cycle).start(200, [(b"a", b"b\r\nc: d")])


async def test_an_old_client_gets_a_stream_that_ends_with_the_connection(router):
    head, _, body = (await talk(router, request(CHAT, "1.0"))).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head
    assert body.startswith(b"data: {")
    assert body.endswith(b"data: [DONE]\n\n")


async def test_a_connection_takes_one_request_after_the_other(router):
    last = request({**CHAT, "stream": False}, Connection="close")
    answer = await talk(router, request(CHAT) + request(COMPLETION) + last)
    assert answer.count(b"HTTP/1.1 200 OK\r\n") == 3
    assert answer.count(b"\r\n0\r\n\r\n") == 2
    head, _, body = answer.rpartition(b"\r\n\r\n")
    assert f"content-length: {len(body)}\r\n".encode() in head + b"\r\n"


async def test_a_head_request_gets_the_length_and_no_body(router):
    answer = await talk(router, b"HEAD /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.endswith(b"\r\n\r\n")
    assert b"content-length: 15\r\n" in answer


async def test_head_opening_and_first_text_come_at_once(router, dispatch):
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


async def test_the_head_comes_where_the_first_token_shows_nothing(router, dispatch):
    async def say_nothing(job, sink, handle):
        sink.on_tokens([dispatch.eos], None)
        await asyncio.Event().wait()

    dispatch.script = say_nothing
    assert b'"role":"assistant"' in await talk(router, request(CHAT), until=b"\n\n")


class Babbler:
    """Says random tokens in random portions: whole words, parts of characters, what is to be escaped, specials."""

    def __init__(self, dispatch, seed):
        self.dispatch, self.seed = dispatch, seed

    async def say(self, job, sink, handle):
        rng = random.Random(f"{self.seed} {job.sampling.seed}")
        tokenizer = self.dispatch.model.tokenizer
        odd = tokenizer.encode_chat('"quoted" \\ back\n\ttab é 🎉 \x01 end')
        num_left = rng.randint(1, 60)
        while num_left:
            num = min(num_left, rng.choice([1, 1, 1, 2, 5]))
            num_left -= num
            tokens = [rng.choice([*odd, rng.randrange(tokenizer.num_tokens)]) for _ in range(num)]
            tokens = [token for token in tokens if token != self.dispatch.eos] or [odd[0]]
            sink.on_tokens(tokens, self.logprobs(job, tokens))
            if rng.random() < 0.5:
                await asyncio.sleep(0)
        reason = rng.choice([FinishReason.STOP, FinishReason.LENGTH])
        if reason is FinishReason.STOP:
            sink.on_tokens([self.dispatch.eos], self.logprobs(job, [self.dispatch.eos]))
        sink.on_finish(reason, handle.usage)

    def logprobs(self, job, tokens):
        rows = [self.dispatch.logprobs(job, at, token) for at, token in enumerate(tokens)]
        return None if None in rows else [row for one in rows for row in one]


KINDS = [
    CHAT,
    COMPLETION,
    {**CHAT, "stream_options": {"include_usage": True}},
    {**CHAT, "stop": ["e", "zq"]},
    {**CHAT, "logprobs": True, "top_logprobs": 2},
    {**COMPLETION, "echo": True},
]


@pytest.mark.parametrize("body", KINDS)
async def test_both_ways_make_the_same_bytes(router, dispatch, monkeypatch, body):
    for module in (chat, completions):
        monkeypatch.setattr(module, "answer_id", lambda prefix: f"{prefix}-0")
        monkeypatch.setattr(module.time, "time", lambda: 1_700_000_000)
    num_inserted = 0
    inserter = Sender.inserter

    def counted(self, before, after):
        insert = inserter(self, before, after)

        def wrapped(text):
            nonlocal num_inserted
            done = insert(text)
            num_inserted += done
            return done

        return wrapped

    async def transcript(seed):
        dispatch.script = Babbler(dispatch, seed).say
        answer = await talk(router, request({**body, "seed": seed}, Connection="close"))
        return re.sub(rb"date: [^\r]*\r\n", b"", answer)

    monkeypatch.setattr(Sender, "inserter", counted)
    short = [await transcript(seed) for seed in range(15)]
    monkeypatch.setattr(Sender, "inserter", lambda *_: None)
    assert short == [await transcript(seed) for seed in range(15)]
    assert (num_inserted > 100) == ("stop" not in body and "logprobs" not in body)
